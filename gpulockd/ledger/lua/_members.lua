-- Members: tickets of other processes of the same run that joined a lease. A lease ends when its holder and all members
-- have ended; a loss ends it for all.

members = room(function(members)
  -- Does the lease to be joined give what is asked for? A whole card may be shared further, a budget may not grow.
  local function covers(lease, w)
    local has, held, fitting = gpus.wants(lease.wants), {}, 0
    if not has.exclusive and w.exclusive then return false end
    for _, key in ipairs(gpus.split(lease.gpus)) do
      held[key] = true
      if has.exclusive and gpus.suits(w, gpus.get(key)) or (not has.exclusive and w.mib <= has.mib) then
        fitting = fitting + 1
      end
    end
    for _, key in ipairs(w.keys or {}) do
      if not held[key] then return false end
    end
    return fitting >= w.count
  end

  local function same_boot(session, other)
    local mine = redis.call('HGET', names.base .. 'session:' .. session, 'boot_id')
    return mine and mine == redis.call('HGET', names.base .. 'session:' .. other, 'boot_id')
  end

  -- While the pool is frozen, is it open whether the lease `id` stands? The books of before may have one that is over,
  -- and lack one whose holder has not been heard yet.
  function members.in_doubt(id)
    local lease = books.frozen() and tickets.get(id)
    if not books.frozen() or lease and tickets.is_proven(lease) then return false end
    return redis.call('EXISTS', names.base .. 'done:' .. id) == 0
  end

  -- Lets ticket `t` into the lease `id` with `token`. Returns the lease and 'joined', 'more' (it asks for more than the
  -- lease has), or nil if there is no such lease any more; 'in_doubt' as its second.
  function members.join(t, id, token)
    if members.in_doubt(id) then return nil, 'in_doubt' end
    local lease = tickets.get(id)
    if not lease or lease.state ~= 'held' or text(lease.token) ~= token then return nil end
    if not same_boot(t.session, lease.session) then return nil end
    if not covers(lease, gpus.wants(t.wants)) then return lease, 'more' end
    t.state, t.of, t.token, t.gpus, t.stamp = 'member', id, lease.token, lease.gpus, books.now
    t.score = t.stamp
    tickets.enter(t)
    redis.call('SADD', names.base .. 'members:' .. id, t.id)
    if not lease.members then tickets.mark(lease, 'members', '1') end
    return lease, 'joined'
  end

  -- The holder of a lease has ended: if members are left the lease goes on.
  function members.outlive(t, reason)
    if redis.call('SCARD', names.base .. 'members:' .. t.id) == 0 then return false end
    tickets.mark(t, 'left', reason)
    ends.bury(t.id, t.session, reason)
    return true
  end

  function members.leave(t, reason)
    tickets.delete(t)
    redis.call('SREM', names.base .. 'members:' .. t.of, t.id)
    ends.bury(t.id, t.session, reason)
    local lease = tickets.get(t.of)
    if not lease then return end
    if ends.lost_by(reason) then tickets.mark(lease, 'member_died', '1') end
    if not lease.left then return end
    if redis.call('SCARD', names.base .. 'members:' .. t.of) == 0 then
      ends.lease(lease, (ends.lost_by(reason) or lease.member_died) and 'died' or lease.left)
    end
  end

  function members.end_all(id, reason)
    for _, member in ipairs(redis.call('SMEMBERS', names.base .. 'members:' .. id)) do
      local t = tickets.get(member)
      if t then tickets.delete(t) end
      ends.bury(member, t and t.session, reason)
      if t and ends.lost_by(reason) then books.ring(t.session, 'lost ' .. member .. ' ' .. reason) end
    end
    redis.call('DEL', names.base .. 'members:' .. id)
  end
end)
