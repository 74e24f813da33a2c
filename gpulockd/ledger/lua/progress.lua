-- progress: the holder, or its user through the daemon, says how far its work is; it also renews the lease's own end.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session, '': its user    ARGV[2] lease id    ARGV[3] token    ARGV[4] percent (0 ... 100), ''    ARGV[5] note
-- returns  {'noted'} | {'gone', ..., reason} | {'stale', ..., present token} | {'no_session'} | {'unopened'}
local id = ARGV[2]
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local t = tickets.get(id)
if not t then return books.answer('gone', redis.call('GET', names.base .. 'done:' .. id) or 'unknown') end
local holds = (ARGV[1] == '' or t.session == ARGV[1]) and (t.state == 'held' or t.state == 'member')
if not holds or text(t.token) ~= ARGV[3] then return books.answer('stale', text(t.token)) end
local lease = t.state == 'member' and t.of or id
redis.call('HSET', names.base .. 'ticket:' .. lease, 'percent', ARGV[4], 'note', ARGV[5], 'beat_ms', text(books.now))
tickets.renew(t)
return books.answer('noted')
