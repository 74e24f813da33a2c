-- revise: a change of the fleet's configuration becomes the next revision, if nobody has made another one meanwhile. It
-- is written down and told in the same step. The first one is number 0, and stable.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py), and KEYS[7] the bases of a pool if there is a base
-- ARGV[1]  '' (no session)
-- ARGV[2]  number of the current revision as the caller knows it, '' for none
-- ARGV[3]  id of this change: a repeated call answers as the first one did    ARGV[4] the live document (JSON)
-- ARGV[5]  the rest of the revision (a JSON object)    ARGV[6] line of the audit (a JSON object)
-- ARGV[7]  what the pool's file and environment say from this revision on (JSON), '' for nothing new
-- returns  {'revised', TIME (ms), revision (JSON), mark} | {'conflict', TIME (ms), current revision or '', mark}
local expected, id, live = ARGV[2], ARGV[3], ARGV[4]
local current = fleet.current()
if current and redis.call('HGET', names.config, 'id') == id then return fleet.told('revised', current) end
if (current or '') ~= expected then return fleet.told('conflict', current) end

local number = current and text(current + 1) or '0'
local now = text(server.time_ms())
-- The revision before the word that it is in force: a cut in between leaves one that nobody follows.
redis.call('HSET', names.revisions, number,
  '{"number":' .. number .. ',"at_ms":' .. now .. ',"live":' .. live .. ',' .. string.sub(ARGV[5], 2))
if number == '0' then
  redis.call('HSET', names.marks, number, '1 ' .. now .. ' ""')
  redis.call('HSET', names.config, 'stable', number)
else
  redis.call('HSET', names.marks, number, '0 0 ""')
end
if ARGV[7] ~= '' then redis.call('HSET', names.bases, number, ARGV[7]) end
redis.call('HSET', names.config, 'current', number, 'id', id, 'live', live)
fleet.forget(number - MOST_REVISIONS)
fleet.note(ARGV[6], number)
fleet.ring('revised', number)
return fleet.told('revised', number)
