-- Tickets. One hash `ticket:<id>` from the request to the end; once granted it is the lease of the same id. What
-- changes together is packed together in its field `core`; `job` is passed on as it came; what few tickets have stands
-- in fields of its own (`chosen`, `members`, `left`, `percent`, ...).

tickets = room(function(tickets)
  local CORE = '^(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)\n([^\n]*)\n(.*)$'
  local CORES_KNOWN = 2048
  local SESSIONS_OUTLASTED = 3   -- as in gpulockd/client/table.py
  local known = {}   -- id -> ticket, read once a script: all who change a ticket change the same table
  local cores, cores_known = {}, 0   -- text -> what it says, over many calls: a ticket is read as it was written

  function tickets.forget()
    if next(known) then known = {} end
  end

  local function remember(packed, said)
    if cores_known >= CORES_KNOWN then cores, cores_known = {}, 0 end
    cores[packed], cores_known = said, cores_known + 1
    return said
  end

  local function core_of(fields)
    for i = 1, #fields, 2 do
      if fields[i] == 'core' then return fields[i + 1] end
    end
  end

  local function copy(t, id)
    return {id = id, state = t.state, session = t.session, wants = t.wants, stamp = t.stamp, score = t.score,
      priority = t.priority, lock_timeout_ms = t.lock_timeout_ms, token = t.token, granted_ms = t.granted_ms,
      gpus = t.gpus, of = t.of, task = t.task, task_id = t.task_id}
  end

  local function read_core(packed)
    local t = {}
    local stamp, score, priority, lock_timeout_ms, token, granted_ms
    t.state, t.session, t.wants, stamp, score, priority, lock_timeout_ms, token, granted_ms, t.gpus, t.of, t.task, t.task_id =
      string.match(packed, CORE)
    t.stamp, t.score, t.priority, t.lock_timeout_ms = stamp + 0, score + 0, priority + 0, lock_timeout_ms + 0
    t.token = token + 0
    if granted_ms ~= '0' then t.granted_ms = granted_ms + 0 end
    if t.gpus == '-' then t.gpus = '' end
    if t.of == '-' then t.of = nil end
    return remember(packed, t)
  end

  -- The ticket with its numbers as numbers, or nil. `task` and `task_id` are JSON texts, the latter '' for none.
  function tickets.get(id)
    if known[id] then return known[id] end
    local fields = redis.call('HGETALL', names.base .. 'ticket:' .. id)
    if not fields[1] then return nil end
    local packed = core_of(fields)
    local t = copy(cores[packed] or read_core(packed), id)
    for i = 1, #fields, 2 do
      if fields[i] ~= 'core' then t[fields[i]] = fields[i + 1] end
    end
    known[id] = t
    return t
  end

  -- The session of a ticket of which only the hash was read (field, value, ...).
  function tickets.session_of(fields)
    local packed = core_of(fields)
    return packed and string.match(packed, '^%S+ (%S+)')
  end

  local function core(t)
    local packed = t.state .. ' ' .. t.session .. ' ' .. t.wants .. ' ' .. text(t.stamp) .. ' ' .. text(t.score) .. ' '
      .. text(t.priority) .. ' ' .. text(t.lock_timeout_ms) .. ' ' .. text(t.token) .. ' ' .. text(t.granted_ms or 0) .. ' '
      .. (t.gpus ~= '' and t.gpus or '-') .. ' ' .. (t.of or '-') .. '\n' .. t.task .. '\n' .. t.task_id
    if not cores[packed] then remember(packed, copy(t)) end
    return packed
  end

  -- Writes what has changed of a ticket that is there.
  function tickets.write(t)
    redis.call('HSET', names.base .. 'ticket:' .. t.id, 'core', core(t))
  end

  -- Writes a ticket that was not there.
  function tickets.enter(t)
    redis.call('HSET', names.base .. 'ticket:' .. t.id, 'core', core(t), 'job', t.job)
    redis.call('SADD', names.base .. 'session_tickets:' .. t.session, t.id)
    known[t.id] = t
  end

  -- A ticket as a request, or a session that has it from before, describes it.
  function tickets.new(id, session, wants, job, task, task_id)
    return {id = id, session = session, wants = wants, job = job, task = books.quote(task), token = 0, gpus = '',
      task_id = task_id ~= '' and cjson.encode(task_id) or ''}
  end

  -- Sets one of the fields that few tickets have; nil takes it away.
  function tickets.mark(t, field, value)
    t[field] = value
    local ticket = names.base .. 'ticket:' .. t.id
    if value then redis.call('HSET', ticket, field, value) else redis.call('HDEL', ticket, field) end
  end

  -- A waiter that leaves and will come back under another id: its stamp is kept for ten minutes, for one to take over.
  function tickets.park(t)
    redis.call('SET', names.base .. 'parked:' .. t.id, text(t.stamp), 'PX', '600000')
  end

  function tickets.parked_stamp(id)
    local stamp = id ~= '' and redis.call('GET', names.base .. 'parked:' .. id)
    return stamp and tonumber(stamp)
  end

  function tickets.unpark(id)
    if id ~= '' then redis.call('DEL', names.base .. 'parked:' .. id) end
  end

  function tickets.delete(t)
    redis.call('DEL', names.base .. 'ticket:' .. t.id)
    known[t.id] = nil
  end

  -- Makes a ticket the holder of `keys`, in the order token, gpus, lease: a cut in between leaves a gpu taken by
  -- nobody, never by two.
  function tickets.hold(t, keys)
    local w, is_new = gpus.wants(t.wants), not t.state
    local via = is_new and '' or ',"via":"poll"'
    if not is_new then tickets.outlast(t) end
    t.token = books.next_token()
    gpus.occupy(w, keys, t.id)
    due.not_before(books.now + t.lock_timeout_ms)
    books.take(1)
    t.state, t.gpus, t.granted_ms = 'held', table.concat(keys, ','), books.now
    if is_new then tickets.enter(t) else tickets.write(t) end
    due.at(books.now + t.lock_timeout_ms, 'lease:' .. t.id)
    books.emit('lock_acquired', tickets.told(t) .. via)
  end

  -- A claim whose winner has spoken.
  function tickets.confirm(t)
    t.state = 'held'
    tickets.outlast(t)
    tickets.write(t)
    due.at(books.now + t.lock_timeout_ms, 'lease:' .. t.id)
    books.emit('lock_acquired', tickets.told(t) .. ',"via":"doorbell"')
  end

  -- All claims and leases: each has its own end.
  function tickets.granted()
    local list = {}
    for _, entry in ipairs(redis.call('ZRANGE', names.due, 0, -1)) do
      local id = string.match(entry, '^lease:(.+)$')
      local t = id and tickets.get(id)
      if t and (t.state == 'claim' or t.state == 'held') then list[#list + 1] = t end
    end
    return list
  end

  -- Was it granted in this epoch, or has somebody said since that it stands? Else it may be over in writes that are lost.
  function tickets.is_proven(t)
    return not books.is_of_before(t.token) or t.asserted == meta.epoch
  end

  -- A grant of before this epoch whose body begins only now: those that began meanwhile had higher tokens.
  function tickets.token_anew(t)
    t.token = books.next_token()
    books.take(0)
    tickets.write(t)
  end

  -- What its process keeps alive ends with the process's session, never before it: it may have been asked for when the
  -- pool's ttl was shorter. Returns whether that changes the ticket.
  function tickets.outlast(t)
    local least_ms = SESSIONS_OUTLASTED * meta.ttl_ms
    if t.lock_timeout_ms >= least_ms or string.find(t.job, '"heartbeat":"manual"', 1, true) then return false end
    t.lock_timeout_ms = least_ms
    return true
  end

  -- A sign of life of a holder or member: the lease's own end moves on.
  function tickets.renew(t)
    local lease = t.state == 'member' and tickets.get(t.of) or t
    redis.call('ZADD', names.due, 'XX', 'GT', books.now + lease.lock_timeout_ms, 'lease:' .. lease.id)
  end

  local function gpus_told(joined)
    local list = {}
    for i, key in ipairs(gpus.split(joined)) do list[i] = books.quote(key) end
    return ',"gpus":[' .. table.concat(list, ',') .. ']'
  end

  -- What an event tells of a ticket.
  function tickets.told(t, reason)
    local token, task_id = t.token > 0 and text(t.token), t.task_id
    if token and task_id == '' then task_id = string.sub(t.task, 1, -2) .. '#' .. token .. '"' end
    return '"lease":' .. cjson.encode(t.id) .. ',"task":' .. t.task
      .. ',"session":' .. books.quote(string.sub(t.session, 1, 8))
      .. ',"waited_ms":' .. text(math.max(0, (t.granted_ms or books.now) - t.stamp))
      .. (token and ',"token":' .. token or '')
      .. (task_id ~= '' and ',"task_id":' .. task_id or '')
      .. (t.gpus ~= '' and gpus_told(t.gpus) or '')
      .. (reason and ',"reason":"' .. reason .. '"' or '')
      .. (reason and t.granted_ms and ',"held_ms":' .. text(books.now - t.granted_ms) or '')
  end
end)
