-- How tickets and leases end. Release, abandon, revoke, expiry and death are one step with another reason; a tombstone
-- makes it final: it answers every repetition and kills a request still under way.

ends = room(function(ends)
  local EVENTS = {released = 'lock_released', left = 'lock_released', abandoned = 'wait_abandoned',
    parked = 'wait_abandoned', timed_out = 'wait_timed_out', expired = 'lock_expired', died = 'lock_expired',
    revoked = 'lock_revoked', overruled = 'lock_revoked', gpu_lost = 'lock_revoked', operator = 'lock_revoked',
    hard_timeout = 'lock_revoked', silent = 'lock_revoked'}

  local TOMBSTONE_MS = '600000'

  function ends.bury(id, session, reason)
    redis.call('SET', names.base .. 'done:' .. id, reason, 'PX', TOMBSTONE_MS)
    if session then redis.call('SREM', names.base .. 'session_tickets:' .. session, id) end
  end

  -- Its holder is gone: nobody is to be told, and members that it has left behind go on.
  local function gone_by(reason)
    return reason == 'died' or reason == 'left'
  end

  function ends.lost_by(reason)
    return reason ~= 'released' and reason ~= 'abandoned' and reason ~= 'parked' and reason ~= 'timed_out'
  end

  -- Frees the gpus of a claim or lease; its records go first, the gpus last.
  function ends.lease(t, reason)
    local lost, keys = ends.lost_by(reason), gpus.split(t.gpus)
    redis.call('ZREM', names.due, 'lease:' .. t.id)
    tickets.delete(t)
    ends.bury(t.id, t.session, reason)
    if t.members then members.end_all(t.id, reason) end
    if lost and not gone_by(reason) and not t.planned then books.ring(t.session, 'lost ' .. t.id .. ' ' .. reason) end
    books.emit(t.state == 'claim' and 'wait_abandoned' or EVENTS[reason],
      tickets.told(t, reason) .. (t.planned and ',"planned":true' or ''))
    gpus.vacate(gpus.wants(t.wants), keys, t.id, lost)
  end

  function ends.ticket(t, reason)
    if t.state == 'member' then return members.leave(t, reason) end
    if t.state == 'claim' or t.state == 'held' then
      if t.members and (gone_by(reason) or not ends.lost_by(reason)) and members.outlive(t, reason) then return end
      return ends.lease(t, reason)
    end
    queue.leave(t.id, gpus.wants(t.wants))
    tickets.delete(t)
    ends.bury(t.id, t.session, reason)
    books.emit(reason == 'timed_out' and 'wait_timed_out' or 'wait_abandoned', tickets.told(t, reason))
  end
end)
