-- report: the daemon says how a gpu is; what makes it ready hands it on in the same script.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session of the daemon    ARGV[2] gpu key    ARGV[3] ready | settled | quarantined | drained | lost
--          | resumed (ready again by somebody's word) | foreign (no state: a process without a lease is on it)
-- ARGV[4]  reason
-- returns  {'noted', ..., state before} | {'unknown_gpu'} | {'no_session'} | {'unopened'}
local key, state, reason = ARGV[2], ARGV[3], ARGV[4]
local EVENTS_OF = {ready = 'gpu_resumed', resumed = 'gpu_resumed', settled = 'gpu_settled', drained = 'gpu_drained',
  quarantined = 'gpu_quarantined', lost = 'gpu_lost'}
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local g = gpus.get(key)
if not g.offered then return books.answer('unknown_gpu') end
local was = g.state
-- A process without a lease is on it: told, and nothing else.
if state == 'foreign' then
  books.emit('foreign_process_seen', books.facts({gpus = {key}, reason = reason}))
  return books.answer('noted', was)
end
if state == 'settled' and was ~= 'settling' and was ~= 'quarantined' then return books.answer('noted', was) end
g.state = (state == 'settled' or state == 'resumed') and 'ready' or state
if was == g.state then return books.answer('noted', was) end
redis.call('ZREM', names.due, 'settle:' .. key)
gpus.write(g)
if EVENTS_OF[state] then books.emit(EVENTS_OF[state], books.facts({gpus = {key}, reason = reason})) end
if g.state == 'ready' then books.freed[key] = true else holding_back.drop_choices_of(key) end
placing.place()
return books.answer('noted', was)
