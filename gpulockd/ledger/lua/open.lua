-- open: a process begins to be alive in a pool, and says what it has from before. It is repeatable; a session that
-- has ended is never reopened. While a pool is frozen, tickets and leases are asserted again by id.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session    ARGV[2] process (JSON, opaque)    ARGV[3] boot id    ARGV[4] the caller's terms (JSON)
-- ARGV[5]  is the pool in the fleet's list: '1' | '0' | '?' (not looked yet)
-- ARGV[6]  what the session has: {tickets = {{id, wants, priority, stamp, job, task, task_id, lock_timeout_ms}, ...},
--          leases = {{... , token, gpus, age_ms}, ...}} (JSON; times in ms)
-- ARGV[7]  machine: a host that has booted anew is still the one that offered the pool
-- ARGV[8]  how long a guard is waited for that the session knew before the data was lost (ms), '0' if it knew none
-- ARGV[9]  how long it lasts at least, whether anybody keeps it alive or not (ms)
-- returns  {'opened', ..., the pool's defaults (JSON), how its epoch opened, {lease ids not accepted}}
--          | {'fleet?'} | {'gone', ..., reason} | {'elsewhere', ..., host, boot id}
local LONGEST_MS = 8 * 86400000
local session, boot_id, known_pool, has = ARGV[1], ARGV[3], ARGV[5], cjson.decode(ARGV[6])
local brings = #has.tickets + #has.leases > 0

if known_pool == '?' and redis.call('HEXISTS', names.meta, 'state') == 0 then return {'fleet?'} end
local refusal = begin('', cjson.decode(ARGV[4]), brings and '1' or known_pool)
if refusal then return refuse(refusal) end
local ended = redis.call('GET', names.base .. 'done:' .. session)
if ended then return books.answer('gone', ended) end
local elsewhere = meta.offered == '1' and meta.boot_id ~= boot_id
  and redis.call('HGET', names.offer, 'machine') ~= ARGV[7]
if elsewhere and redis.call('ZSCORE', names.sessions, meta.offer_session) then
  return books.answer('elsewhere', redis.call('HGET', names.offer, 'host') or '', meta.boot_id)
end

local ends_ms = tonumber(redis.call('ZSCORE', names.sessions, session))
local lasts_ms = math.max(meta.ttl_ms, math.min(tonumber(ARGV[9]), LONGEST_MS))
redis.call('ZADD', names.sessions, math.max(ends_ms or 0, books.now + lasts_ms), session)
due.not_before(books.now + meta.ttl_ms)
redis.call('HSET', names.base .. 'session:' .. session, 'process', ARGV[2], 'boot_id', boot_id)
if not ends_ms then books.emit('session_opened', books.facts({session = string.sub(session, 1, 8)})) end

local refused = brought.assert(session, has)
if ARGV[8] ~= '0' and books.frozen() and meta.guarded ~= '1' then epochs.wait_for_guard(tonumber(ARGV[8])) end
placing.place()
return books.answer('opened', redis.call('HGET', names.offer, 'defaults') or '{}', meta.opened or '', refused)
