-- What is due: sessions that went silent, claims nobody confirmed, leases past their own end, gpus that did not settle.
-- Every verb does it first, at most 32 of each kind; the daemon's timer only makes it prompt.
--
-- The books know a moment before which nothing is due, so most verbs need not look. Therefore all that becomes due is
-- entered by `due.at`, and a session's end that is new by `due.not_before`; what is moved to later needs neither.

due = room(function(due)
  local LIMIT = 32

  function due.not_before(moment)
    if moment < meta.due_ms then meta.due_ms = moment end
  end

  -- Something is due at a moment of the ledger clock (ms).
  function due.at(moment, entry)
    redis.call('ZADD', names.due, moment, entry)
    if moment < meta.due_ms then meta.due_ms = moment end
  end

  -- A claim that its winner did not confirm in time: the gpus go on, the ticket keeps its score but is away.
  local function lapse(t)
    local keys = gpus.split(t.gpus)
    redis.call('ZREM', names.due, 'lease:' .. t.id)
    t.state, t.token, t.gpus, t.granted_ms = 'away', 0, '', nil
    tickets.write(t)
    redis.call('ZADD', names.queue, t.score, t.id)
    redis.call('HINCRBY', names.counters, 'claim_lapsed', 1)
    gpus.vacate(gpus.wants(t.wants), keys, t.id, nil)
  end

  -- What holds a gpu goes before what waits: others wait for it.
  local function holders_first(ids)
    local first, rest = {}, {}
    for _, id in ipairs(ids) do
      local t = tickets.get(id)
      local list = t and (t.state == 'waiting' or t.state == 'away') and rest or first
      list[#list + 1] = id
    end
    for _, id in ipairs(rest) do first[#first + 1] = id end
    return first
  end

  -- Ends a session with up to `LIMIT` of its tickets.
  function due.end_session(session, reason)
    local tickets_key = names.base .. 'session_tickets:' .. session
    local ids = redis.call('SMEMBERS', tickets_key)
    if #ids > LIMIT then ids = holders_first(ids) end
    for i = 1, math.min(#ids, LIMIT) do
      local t = tickets.get(ids[i])
      if t then ends.ticket(t, reason) else redis.call('SREM', tickets_key, ids[i]) end
    end
    redis.call('ZREM', names.sessions, session)
    ends.bury(session, nil, reason)
    -- The guard has signed off, or is dead: from now on the ledger alone lets in.
    if meta.guarded == '1' and meta.offer_session == session then books.note_term('guarded', '0') end
    -- The rest is due at once; the session itself has ended and is not reopened.
    if #ids > LIMIT then return due.at(books.now, 'session:' .. session) end
    redis.call('DEL', names.base .. 'session:' .. session, tickets_key)
    redis.call('ZREM', names.due, 'session:' .. session)
    if reason == 'died' then books.emit('session_lost', books.facts({reason = reason, session = string.sub(session, 1, 8)})) end
  end

  local function settle(key)
    local g = gpus.get(key)
    redis.call('ZREM', names.due, 'settle:' .. key)
    if g.state ~= 'settling' then return end
    -- A guard that has died may still stand in line to be ended.
    local guard_ends_ms = meta.guarded == '1' and redis.call('ZSCORE', names.sessions, meta.offer_session)
    local guarded = guard_ends_ms and tonumber(guard_ends_ms) > books.now
    g.state = guarded and 'quarantined' or 'ready'
    gpus.write(g)
    books.emit(guarded and 'gpu_quarantined' or 'gpu_settled', books.facts({gpus = {key}, reason = 'unsettled'}))
    if guarded then holding_back.drop_choices_of(key) else books.freed[key] = true end
  end

  local function settle_entries(list)
    for _, entry in ipairs(list) do
      local kind, name = string.match(entry, '^(%a+):(.+)$')
      if kind == 'settle' then
        settle(name)
      elseif kind == 'session' then
        due.end_session(name, 'died')
      elseif kind == 'place' then
        redis.call('ZREM', names.due, entry)
        books.freed[name] = true
      else
        local t = tickets.get(name)
        if not t then redis.call('ZREM', names.due, entry)
        elseif t.state == 'claim' then lapse(t)
        else ends.ticket(t, 'expired') end
      end
    end
  end

  -- Does what is due now, and finds out before when nothing will be.
  function due.now()
    local silent = redis.call('ZRANGEBYSCORE', names.sessions, '-inf', books.now, 'LIMIT', 0, LIMIT)
    for _, session in ipairs(silent) do due.end_session(session, 'died') end
    settle_entries(redis.call('ZRANGEBYSCORE', names.due, '-inf', books.now, 'LIMIT', 0, LIMIT))
    meta.due_ms = books.now + meta.ttl_ms
    for _, source in ipairs({names.sessions, names.due}) do
      local first = redis.call('ZRANGE', source, 0, 0, 'WITHSCORES')[2]
      if first then due.not_before(tonumber(first)) end
    end
  end
end)
