-- What a session brings from before: tickets with their stamps, and leases that are asserted again by id while the
-- pool is frozen. Where two leases claim one gpu, the higher token wins.

brought = room(function(brought)
  local function known(id)
    return redis.call('EXISTS', names.base .. 'ticket:' .. id, names.base .. 'done:' .. id) > 0
  end

  local function ticket_of(session, b, state)
    meta.stamp = math.max(meta.stamp, b.stamp)
    local t = tickets.new(b.id, session, b.wants, b.job, b.task, b.task_id)
    t.state, t.stamp, t.score = state, b.stamp, b.stamp - b.priority * meta.priority_step_ms
    t.priority, t.lock_timeout_ms = b.priority, b.lock_timeout_ms
    return t
  end

  -- May this lease have its gpus back? Whoever sits there with a lower token goes. `own`: gpus of its own old claim.
  local function overrule(b, w, own)
    local others = {}
    for _, key in ipairs(b.gpus) do
      local g = gpus.get(key)
      if g.exclusive ~= '' and g.exclusive ~= b.id then others[g.exclusive] = true end
      if w.exclusive and g.shared > 0 then return false end
      if not w.exclusive and g.memory_mib and g.used_mib + (own[key] and 0 or w.mib) > g.memory_mib then return false end
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

  -- What an older state of the store has of a lease, a place in the queue or a claim, gives way to it.
  local function forget(t, w)
    if t.state ~= 'claim' then return queue.leave(t.id, w) end
    redis.call('ZREM', names.due, 'lease:' .. t.id)
    gpus.vacate(w, gpus.split(t.gpus), t.id, nil)
  end

  local function lease(session, b)
    if redis.call('EXISTS', names.base .. 'done:' .. b.id) == 1 then return false end
    local old = tickets.get(b.id)
    if old and old.state == 'held' and old.session == session and old.token == b.token then return true end
    if meta.opened == 'never_used' and not books.frozen() then epochs.freeze(meta.ttl_ms, 'data_lost') end
    if not books.frozen() or old and (old.state == 'held' or old.state == 'member' or old.token > b.token) then return false end
    local w, own = gpus.wants(b.wants), {}
    for _, key in ipairs(gpus.split(old and old.gpus)) do own[key] = true end
    if not overrule(b, w, own) then return false end
    if old then forget(old, w) end
    books.raise_token(b.token)
    gpus.occupy(w, b.gpus, b.id)
    books.take(0)
    local t = ticket_of(session, b, 'held')
    t.token, t.gpus, t.granted_ms = b.token, table.concat(b.gpus, ','), books.now - b.age_ms
    tickets.enter(t)
    due.at(books.now + b.lock_timeout_ms, 'lease:' .. b.id)
    return true
  end

  -- Takes up all that `session` has. Returns the ids of the leases not accepted.
  function brought.assert(session, has)
    local refused = {}
    for _, b in ipairs(has.leases) do
      if not lease(session, b) then refused[#refused + 1] = b.id end
    end
    for _, b in ipairs(has.tickets) do
      if not known(b.id) then
        b.wants = limits.meant(b.wants)
        local t = ticket_of(session, b, 'waiting')
        tickets.enter(t)
        queue.enter(t.id, gpus.wants(t.wants), t.score)
        for _, key in ipairs(gpus.candidates(gpus.wants(t.wants))) do books.freed[key] = true end
      end
    end
    return refused
  end
end)
