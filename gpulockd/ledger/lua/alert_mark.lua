-- alert_mark: one value of the fleet's books of alerts: a silence, or how a daemon stands.
--
-- KEYS[1]  silences or daemons
-- ARGV[1]  field    ARGV[2] the value, '' removes it    ARGV[3] how long it holds (ms), '' for ever
-- returns  {'marked', until when it holds on the wall clock (ms) or ''}
local until_ms = ARGV[3] ~= '' and text(now_ms() + ARGV[3]) or ''
-- Silences that are over go when one is made, so that their hash stays small.
if until_ms ~= '' then
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local ends_ms = tonumber(string.match(all[i + 1], '^%d+'))
    if ends_ms and ends_ms < now_ms() then redis.call('HDEL', KEYS[1], all[i]) end
  end
end
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], until_ms .. ' ' .. ARGV[2]) end
return {'marked', until_ms}
