-- What a session brings from before: tickets with their stamps, and leases that are asserted again by id while the
-- pool is frozen. Where two leases claim one gpu, the higher token wins.

brought = room(function(brought)
  local function known(id)
    return redis.call('EXISTS', names.base .. 'ticket:' .. id, names.base .. 'done:' .. id) > 0
  end

  local function ticket_of(session, b, state)
    books.note('stamp', math.max(tonumber(meta.stamp), b.stamp))
    books.now = math.max(books.now, b.stamp)
    books.note('clock_ms', books.now)
    b.session, b.state, b.score = session, state, b.stamp - b.priority * meta.priority_step_ms
    return b
  end

  -- May this lease have its gpus back? Whoever sits there with a lower token goes.
  local function overrule(b, w)
    local others = {}
    for _, key in ipairs(b.gpus) do
      local g = gpus.get(key)
      if g.exclusive ~= '' and g.exclusive ~= b.id then others[g.exclusive] = true end
      if w.exclusive and g.shared > 0 then return false end
      if not w.exclusive and g.memory_mib and g.used_mib + w.mib > g.memory_mib then return false end
    end
    for id in pairs(others) do
      local t = tickets.get(id)
      if t and t.token > b.token then return false end
    end
    for id in pairs(others) do
      local t = tickets.get(id)
      if t then ends.lease(t, 'overruled') end
    end
    return true
  end

  local function lease(session, b)
    if meta.opened == 'never_used' and not books.frozen() then epochs.freeze(tonumber(meta.ttl_ms), 'data_lost') end
    local w = gpus.wants(b.wants)
    if not books.frozen() or not overrule(b, w) then return false end
    books.note('token', math.max(tonumber(meta.token), b.token))
    redis.call('HSET', names.meta, 'token', meta.token)
    gpus.occupy(w, b.gpus, b.id)
    local t = ticket_of(session, b, 'held')
    t.gpus, t.granted_ms = table.concat(b.gpus, ','), books.now - b.age_ms
    tickets.write(t)
    redis.call('ZADD', names.due, books.now + b.lock_timeout_ms, 'lease:' .. b.id)
    return true
  end

  -- Takes up all that `session` has. Returns the ids of the leases not accepted.
  function brought.assert(session, has)
    local refused = {}
    for _, b in ipairs(has.leases) do
      if not known(b.id) and not lease(session, b) then refused[#refused + 1] = b.id end
    end
    for _, b in ipairs(has.tickets) do
      if not known(b.id) then
        b.token, b.gpus = 0, ''
        local t = ticket_of(session, b, 'waiting')
        tickets.write(t)
        queue.enter(t.id, gpus.wants(t.wants), t.score)
        for _, key in ipairs(gpus.candidates(gpus.wants(t.wants))) do books.freed[key] = true end
      end
    end
    return refused
  end
end)
