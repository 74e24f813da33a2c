-- load: measures how busy the server and the pool's gpus have been since the last measurement, whoever made that. So of
-- two daemons that measure, each counts another time. What happened in between is taken to have been as it is now.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  ''    ARGV[2] least time between two measurements (ms): asked sooner, it measures nothing
-- ARGV[3]  the most (ms): of a longer time nothing is known, and measuring begins anew
-- ARGV[4]  how long it is kept (ms)
-- returns  {'measured', ..., wall clock (ms), the time that was measured (ms)} | {'unopened'}
local least_ms, most_ms, kept_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local refusal = begin('')
if refusal then return refuse(refusal) end
local base, wall_ms, run_id = names.base .. 'recorded', books.wall_ms, server.run_id()
local last_ms, last_cpu_ms, last_run_id = string.match(redis.call('HGET', base, 'load') or '', '^(%d+) (%d+) (%w+)$')
local took_ms = last_ms and wall_ms - last_ms or -1
if took_ms >= 0 and took_ms < least_ms and last_run_id == run_id then
  return books.answer('measured', text(wall_ms), '0')
end

local cpu = server.info('cpu')
local cpu_s = string.match(cpu, 'used_cpu_user:([%d.]+)') + string.match(cpu, 'used_cpu_sys:([%d.]+)')
local cpu_ms = math.floor(cpu_s * 1000 + 0.5)
if took_ms <= 0 or took_ms > most_ms or last_run_id ~= run_id then
  redis.call('HSET', base, 'load', text(wall_ms) .. ' ' .. text(cpu_ms) .. ' ' .. run_id)
  return books.answer('measured', text(wall_ms), '0')
end

local offered, busy = 0, 0
for _, key in ipairs(gpus.offered()) do
  local g = gpus.get(key)
  offered = offered + 1
  if g.exclusive ~= '' or g.shared > 0 then busy = busy + 1 end
end
local spent_ms = math.max(0, cpu_ms - last_cpu_ms)
local new = {took_ms, spent_ms, took_ms * offered, took_ms * busy}
local hour = base .. ':load:' .. text(math.floor(wall_ms / 3600000))
local minute = text(math.floor(wall_ms / 60000) % 60)
local before = redis.call('HMGET', hour, minute, 'all')
for i, field in ipairs({minute, 'all'}) do
  local known = before[i] and cjson.decode(before[i]) or {0, 0, 0, 0, 0}
  local sum = {}
  for n = 1, 4 do sum[n] = text(known[n] + new[n]) end
  sum[5] = text(math.max(known[5], math.floor(1000 * spent_ms / took_ms + 0.5)))
  redis.call('HSET', hour, field, '[' .. table.concat(sum, ',') .. ']')
end
redis.call('PEXPIREAT', hour, text(wall_ms + kept_ms), 'NX')
redis.call('HSET', base, 'load', text(wall_ms) .. ' ' .. text(cpu_ms) .. ' ' .. run_id)
return books.answer('measured', text(wall_ms), text(took_ms))
