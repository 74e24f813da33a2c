-- base: what file and environment of a pool's daemon say from the current revision on. What a rollback may still need
-- stays: the bases of the last revisions, and the one that the stable revision had.
--
-- KEYS     the fleet's, and KEYS[7] the bases of the pool    ARGV[1] '' (no session)    ARGV[2] base (JSON)
-- returns  {'based', TIME (ms), number} | {'unknown', TIME (ms), ''}: there is no revision yet
local current = fleet.current()
if not current then return fleet.answer('unknown', '') end
redis.call('HSET', names.bases, current, ARGV[2])
if redis.call('HLEN', names.bases) > MOST_REVISIONS then
  local stable, needed = tonumber(redis.call('HGET', names.config, 'stable') or -1), -1
  local numbers = redis.call('HKEYS', names.bases)
  for _, number in ipairs(numbers) do
    if tonumber(number) <= stable and tonumber(number) > needed then needed = tonumber(number) end
  end
  for _, number in ipairs(numbers) do
    if current - number >= MOST_REVISIONS and tonumber(number) ~= needed then redis.call('HDEL', names.bases, number) end
  end
end
return fleet.answer('based', current)
