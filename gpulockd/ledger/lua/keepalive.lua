-- keepalive: extends a session, renews the own end of its leases, and says what the session has, so that a lost
-- doorbell, a lost `lost` and a half-open subscription repair themselves. It confirms nothing and brings nothing back,
-- except the places of those that wait, where the queue has lost them.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session    ARGV[2] number of this echo    ARGV[3...] lease id, token: leases the process believes to hold
-- returns  {'alive', ..., listeners, {id, token, state, ...}, {id, reason, ...} of those it no longer holds,
--          {id, ...} of those that are asked to stop, {id, ...} of those that are if a ring has said so: a daemon of an
--          earlier version writes down no more} | {'no_session'} | {'unopened'}
local session = ARGV[1]
local refusal = begin(session)
if refusal then return refuse(refusal) end

local has, words, waiting = {}, {}, {}
for _, id in ipairs(redis.call('SMEMBERS', names.base .. 'session_tickets:' .. session)) do
  local t = tickets.get(id)
  if t and t.state ~= 'waiting' then
    has[#has + 1], has[#has + 2], has[#has + 3] = id, text(t.token), t.state
    words[#words + 1] = id .. ':' .. text(t.token) .. ':' .. t.state
  elseif t then
    waiting[#waiting + 1] = t
  end
end
if waiting[1] and not queue.has(waiting[1]) then
  for _, t in ipairs(waiting) do
    queue.enter(t.id, gpus.wants(t.wants), t.score)
    for _, key in ipairs(gpus.candidates(gpus.wants(t.wants))) do books.freed[key] = true end
  end
  placing.place()
end

local lost, stops, rung = {}, {}, {}
for i = 3, #ARGV, 2 do
  local t = tickets.get(ARGV[i])
  local stands = t and t.session == session and text(t.token) == ARGV[i + 1]
  if stands and (t.state == 'held' or t.state == 'member') then
    -- Only its own words count for a task that reports by itself.
    local lease = t.state == 'member' and tickets.get(t.of) or t
    if tickets.outlast(lease) then tickets.write(lease) end
    if not string.find(lease.job, '"heartbeat":"manual"', 1, true) then tickets.renew(t) end
    if lease.stop or lease.asked then stops[#stops + 1] = t.id
    elseif lease.level == 'soft' and not lease.unrung then rung[#rung + 1] = t.id end
  else
    local buried = redis.call('GET', names.base .. 'done:' .. ARGV[i])
    if buried or not books.frozen() then lost[#lost + 1], lost[#lost + 2] = ARGV[i], buried or 'overruled' end
  end
end
local listeners = books.ring(session, 'echo ' .. ARGV[2] .. ' ' .. table.concat(words, ' '))
return books.answer('alive', text(listeners), has, lost, stops, rung)
