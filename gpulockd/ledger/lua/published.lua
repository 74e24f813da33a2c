-- published: what the pool publishes now, for a client that has missed the message.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  '' (no session)
-- returns  {'published', ..., version, defaults (JSON)} | {'unopened'}
local refusal = begin('')
if refusal then return refuse(refusal) end
return books.answer('published', text(published.version()), redis.call('HGET', names.offer, 'defaults') or '{}')
