-- alert_look: does this session of the pool live? It is not extended by the question.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  '' (no session)    ARGV[2] the session
-- returns  {'alive', ...} | {'gone', ...} | {'unopened'}
local refusal = begin('')
if refusal then return refuse(refusal) end
return books.answer(redis.call('ZSCORE', names.sessions, ARGV[2]) and 'alive' or 'gone')
