-- end: release, abandon, revoke, or close a session: one step with another actor and reason. Whatever it frees is
-- handed on in the same script. A stale token changes nothing and is told so.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session of the caller, '' for the daemon or an operator    ARGV[2] 'ticket' | 'session'
-- ARGV[3]  ticket, lease or session id    ARGV[4] token, '' for whatever it has (abandon)
-- ARGV[5]  reason: expired: its time is over, as planned | left: its connection is gone, and nobody knows what its user
--          does | released | abandoned | timed_out | died | parked: its place is kept for another ticket | revoked, or
--          who revoked it: operator | hard_timeout | silent | gpu_lost
-- returns  {'ended', ..., reason} | {'gone', ..., reason it ended by} | {'stale', ..., present token}
--          | {'no_session'} | {'unopened'}
local session, what, id, token, reason = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local refusal = begin(session)
if refusal then return refuse(refusal) end
if what == 'session' then
  if not redis.call('ZSCORE', names.sessions, id) then return books.answer('gone', 'unknown') end
  due.end_session(id, reason)
  placing.place()
  return books.answer('ended', reason)
end

local t = tickets.get(id)
if not t then
  local buried = redis.call('GET', names.base .. 'done:' .. id)
  -- A request may still be under way: the tombstone is there before it.
  if not buried then ends.bury(id, nil, reason) end
  return books.answer('gone', buried or 'unknown')
end
local mine = session == '' or session == t.session
if not mine or (token ~= '' and token ~= text(t.token)) then return books.answer('stale', text(t.token)) end
if reason == 'parked' and not (t.state == 'held' or t.state == 'member') then tickets.park(t) end
t.planned = reason == 'expired'
ends.ticket(t, reason)
if next(books.freed) then placing.place() end
return books.answer('ended', reason)
