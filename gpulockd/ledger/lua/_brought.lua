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

  -- May it be over in writes that are lost? One that lives on in its members is asserted by nobody.
  local function is_doubtful(t)
    return not tickets.is_proven(t) and (not t.members or redis.call('SCARD', names.base .. 'members:' .. t.id) == 0)
  end

  -- The budgets on a gpu besides that of `b`: first those that may be over, then by their tokens.
  local function budgets_on(key, b)
    local list = {}
    for _, t in ipairs(tickets.granted()) do
      local there = t.id ~= b.id and not gpus.wants(t.wants).exclusive
      for _, taken in ipairs(there and gpus.split(t.gpus) or {}) do
        if taken == key then list[#list + 1] = t end
      end
      t.doubtful = is_doubtful(t)
    end
    table.sort(list, function(one, other)
      if one.doubtful ~= other.doubtful then return one.doubtful end
      return one.token < other.token
    end)
    return list
  end

  -- Adds to `goes` those whose budgets leave too little of a gpu, until at most `mib` are taken; false if one stays.
  -- A whole card was given when all before it had ended. Of budgets that do not fit some are over, nobody knows which:
  -- those that nobody has asserted in this epoch go first, whatever their tokens.
  local function make_room(key, mib, b, w, goes)
    local budgets, used = budgets_on(key, b), 0
    for _, t in ipairs(budgets) do used = used + (goes[t.id] and 0 or gpus.wants(t.wants).mib) end
    for _, t in ipairs(budgets) do
      if not goes[t.id] and (w.exclusive or used > mib) then
        if t.token > b.token and (w.exclusive or not t.doubtful) then return false end
        goes[t.id], used = t, used - gpus.wants(t.wants).mib
      end
    end
    return used <= mib
  end

  local function leave_gpus(t)
    redis.call('ZREM', names.due, 'lease:' .. t.id)
    gpus.vacate(gpus.wants(t.wants), gpus.split(t.gpus), t.id, nil)
  end

  -- What may be over leaves no tombstone: whoever has it still asserts it.
  local function put_aside(t)
    redis.call('SREM', names.base .. 'session_tickets:' .. t.session, t.id)
    tickets.delete(t)
    books.emit('lock_revoked', tickets.told(t, 'overruled'))
    leave_gpus(t)
  end

  -- May this lease have its gpus back? Whoever is in its way with a lower token goes. `own`: gpus of its own old claim.
  local function overrule(b, w, own)
    local goes = {}
    for _, key in ipairs(b.gpus) do
      local g = gpus.get(key)
      local t = g.exclusive ~= '' and g.exclusive ~= b.id and tickets.get(g.exclusive)
      if t and t.token > b.token then return false end
      if t then goes[t.id] = t end
      local crowded = not w.exclusive and g.memory_mib and g.used_mib + (own[key] and 0 or w.mib) > g.memory_mib
      if w.exclusive and g.shared > 0 or crowded then
        if not make_room(key, w.exclusive and 0 or g.memory_mib - w.mib, b, w, goes) then return false end
      end
    end
    for _, t in pairs(goes) do
      local over = w.exclusive or gpus.wants(t.wants).exclusive or not t.doubtful
      if over then ends.lease(t, 'overruled') else put_aside(t) end
    end
    return true
  end

  -- Somebody may have deleted by hand what says that a lease which still stands is on its gpus.
  local function stands(t, b)
    if not books.frozen() then return true end
    tickets.mark(t, 'asserted', meta.epoch)
    local w, off = gpus.wants(t.wants), {}
    for _, key in ipairs(w.exclusive and gpus.split(t.gpus) or {}) do
      if gpus.get(key).exclusive ~= t.id then off[#off + 1] = key end
    end
    if not off[1] then return true end
    if not overrule(b, w, {}) then
      ends.lease(t, 'overruled')
      return false
    end
    gpus.occupy(w, off, t.id)
    return true
  end

  -- What an older state of the store has of a lease, a place in the queue or a claim, gives way to it.
  local function forget(t, w)
    if t.state == 'claim' then leave_gpus(t) else queue.leave(t.id, w) end
  end

  local function lease(session, b)
    if redis.call('EXISTS', names.base .. 'done:' .. b.id) == 1 then return false end
    local old = tickets.get(b.id)
    if old and old.state == 'held' and old.session == session and old.token == b.token then return stands(old, b) end
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
    tickets.outlast(t)
    tickets.enter(t)
    tickets.mark(t, 'asserted', meta.epoch)
    due.at(books.now + t.lock_timeout_ms, 'lease:' .. b.id)
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
