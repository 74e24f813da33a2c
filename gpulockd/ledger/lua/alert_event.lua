-- alert_event: an alert of the pool was raised or is over; told in its stream once, however often it is said.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  '' (no session)    ARGV[2] alert_raised | alert_resolved    ARGV[3] the notice's id
-- ARGV[4]  rule    ARGV[5] level    ARGV[6] message    ARGV[7] what explains it
-- returns  {'told', ...} | {'noted', ...}: told before | {'unopened'}
local refusal = begin('')
if refusal then return refuse(refusal) end
local mark = names.base .. 'done:alert:' .. ARGV[3]
if not redis.call('SET', mark, ARGV[2], 'NX', 'PX', '86400000') then return books.answer('noted') end
books.emit(ARGV[2], books.facts({rule = ARGV[4], level = ARGV[5], message = ARGV[6], reason = ARGV[7]}))
return books.answer('told')
