-- Tickets. One hash `ticket:<id>` from the request to the end; once granted it is the lease of the same id.

tickets = room(function(tickets)
  -- The ticket with its numbers as numbers, or nil.
  function tickets.get(id)
    local fields = redis.call('HGETALL', names.base .. 'ticket:' .. id)
    if #fields == 0 then return nil end
    local t = {id = id, token = 0, gpus = ''}
    for i = 1, #fields, 2 do t[fields[i]] = fields[i + 1] end
    for _, name in ipairs({'token', 'granted_ms', 'stamp', 'score', 'lock_timeout_ms'}) do t[name] = tonumber(t[name]) end
    return t
  end

  function tickets.write(t)
    redis.call('HSET', names.base .. 'ticket:' .. t.id, 'state', t.state, 'session', t.session, 'wants', t.wants,
      'stamp', t.stamp, 'score', t.score, 'priority', t.priority, 'job', t.job, 'task', t.task, 'task_id', t.task_id,
      'lock_timeout_ms', t.lock_timeout_ms, 'token', t.token, 'gpus', t.gpus, 'granted_ms', t.granted_ms or '',
      'of', t.of or '')
    redis.call('SADD', names.base .. 'session_tickets:' .. t.session, t.id)
  end

  -- Makes a ticket the holder of `keys`, in the order token, gpus, lease: a cut in between leaves a gpu taken by
  -- nobody, never by two.
  function tickets.hold(t, keys)
    local w = gpus.wants(t.wants)
    t.token = books.next_token()
    gpus.occupy(w, keys, t.id)
    t.state, t.gpus, t.granted_ms = 'held', table.concat(keys, ','), books.now
    tickets.write(t)
    redis.call('ZADD', names.due, books.now + t.lock_timeout_ms, 'lease:' .. t.id)
    books.emit('lock_acquired', tickets.told(t))
  end

  -- A claim whose winner has spoken.
  function tickets.confirm(t)
    redis.call('HSET', names.base .. 'ticket:' .. t.id, 'state', 'held')
    redis.call('ZADD', names.due, books.now + t.lock_timeout_ms, 'lease:' .. t.id)
    books.emit('lock_acquired', tickets.told(t))
  end

  -- A sign of life of a holder or member: the lease's own end moves on.
  function tickets.renew(t)
    local lease = t.state == 'member' and tickets.get(t.of) or t
    redis.call('ZADD', names.due, 'XX', 'GT', books.now + lease.lock_timeout_ms, 'lease:' .. lease.id)
  end

  -- What an event tells of a ticket.
  function tickets.told(t, reason)
    local facts = {'"lease":' .. cjson.encode(t.id), '"task":' .. books.quote(t.task),
      '"waited_ms":' .. text(math.max(0, (t.granted_ms or books.now) - t.stamp))}
    local task_id = t.task_id
    if t.token > 0 then
      facts[4] = '"token":' .. text(t.token)
      if task_id == '' then task_id = t.task .. '#' .. text(t.token) end
    end
    if task_id ~= '' then facts[#facts + 1] = '"task_id":' .. cjson.encode(task_id) end
    if t.gpus ~= '' then
      local list = gpus.split(t.gpus)
      for i, key in ipairs(list) do list[i] = books.quote(key) end
      facts[#facts + 1] = '"gpus":[' .. table.concat(list, ',') .. ']'
    end
    if reason then facts[#facts + 1] = '"reason":' .. books.quote(reason) end
    if t.granted_ms and reason then facts[#facts + 1] = '"held_ms":' .. text(books.now - t.granted_ms) end
    return table.concat(facts, ',')
  end
end)
