-- alert_read: all alerts, silences, daemons and channels; of the history and the store itself, what is asked for.
--
-- KEYS[1]  alerts    KEYS[2] silences    KEYS[3] daemons    KEYS[4] channels    KEYS[5] history    KEYS[6] outbox
-- ARGV[1]  lines of history wanted (0 ... 1000), the latest first
-- returns  {'alerts', wall clock (ms), alerts (flat), silences (flat), daemons (flat), channels (flat), {line, ...},
--          {pool|channel, notices not sent yet, ...}, CPU time of the server since its start (s) or ''}
local lines, wanted = {}, math.min(1000, tonumber(ARGV[1]))
if wanted > 0 then
  for i, row in ipairs(redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', wanted)) do lines[i] = row[2][2] end
end
local cpu, used = redis.call('INFO', 'cpu'), nil
for _, name in ipairs({'used_cpu_sys:', 'used_cpu_user:'}) do
  local seconds = string.match(cpu, '[^_%w]' .. name .. '([%d.]+)')
  if seconds then used = (used or 0) + tonumber(seconds) end
end
-- A notice's field is "<pool>|<channel>|<alert>".
local waiting, untold = {}, {}
for _, field in ipairs(redis.call('HKEYS', KEYS[6])) do
  local channel = string.match(field, '^[^|]*|[^|]*') or ''
  waiting[channel] = (waiting[channel] or 0) + 1
end
for channel, count in pairs(waiting) do
  untold[#untold + 1], untold[#untold + 2] = channel, text(count)
end
return {'alerts', text(now_ms()), redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2]),
  redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4]), lines, untold,
  used and string.format('%.6f', used) or ''}
