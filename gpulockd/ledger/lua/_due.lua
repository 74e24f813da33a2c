-- What is due: sessions that went silent, claims nobody confirmed, leases past their own end, gpus that did not settle.
-- Every verb does it first, at most 32 of each kind; the daemon's timer only makes it prompt.

due = room(function(due)
  local LIMIT = 32

  -- A claim that its winner did not confirm in time: the gpus go on, the ticket keeps its score but is away.
  local function lapse(t)
    local ticket = names.base .. 'ticket:' .. t.id
    redis.call('ZREM', names.due, 'lease:' .. t.id)
    redis.call('HSET', ticket, 'state', 'away', 'token', 0, 'gpus', '', 'granted_ms', '')
    redis.call('ZADD', names.queue, t.score, t.id)
    redis.call('HINCRBY', names.counters, 'claim_lapsed', 1)
    gpus.vacate(gpus.wants(t.wants), gpus.split(t.gpus), t.id, false)
  end

  -- What holds a gpu goes before what waits: others wait for it.
  local function holders_first(ids)
    local first, rest = {}, {}
    for _, id in ipairs(ids) do
      local state = redis.call('HGET', names.base .. 'ticket:' .. id, 'state')
      local list = (state == 'waiting' or state == 'away') and rest or first
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
    -- The rest is due at once; the session itself has ended and is not reopened.
    if #ids > LIMIT then return redis.call('ZADD', names.due, books.now, 'session:' .. session) end
    redis.call('DEL', names.base .. 'session:' .. session, tickets_key)
    redis.call('ZREM', names.due, 'session:' .. session)
    if reason == 'died' then books.emit('session_lost', books.facts({reason = reason, session = string.sub(session, 1, 8)})) end
  end

  local function settle(key)
    local g = gpus.get(key)
    redis.call('ZREM', names.due, 'settle:' .. key)
    if g.state ~= 'settling' then return end
    local guarded = meta.guarded == '1' and redis.call('ZSCORE', names.sessions, meta.offer_session)
    g.state = guarded and 'quarantined' or 'ready'
    gpus.write(g)
    books.emit(guarded and 'gpu_quarantined' or 'gpu_settled', books.facts({gpus = {key}, reason = 'unsettled'}))
    if guarded then holding_back.drop_choices_of(key) else books.freed[key] = true end
  end

  function due.end_sessions(list)
    for _, session in ipairs(list) do
      due.end_session(session, 'died')
    end
  end

  function due.settle_entries(list)
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
end)
