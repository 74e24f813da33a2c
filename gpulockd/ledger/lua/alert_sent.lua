-- alert_sent: how telling went. What was told leaves the outbox, unless a later notice has taken its place; what was
-- not rests for a while and can then be claimed again. Without notices it is a test of the channel.
--
-- KEYS[1]  outbox    KEYS[2] channels
-- ARGV[1]  who tells (a pool)    ARGV[2] the channel    ARGV[3] who has claimed
-- ARGV[4]  'told' | 'failed' | 'dropped': it never will be
-- ARGV[5]  rest after a failure (ms)    ARGV[6] what is known of the channel, JSON
-- ARGV[7...] two a notice: field, notice id
-- returns  {'noted', wall clock (ms)}
local by, channel, claim, how = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now, name = now_ms(), ARGV[1] .. '|' .. ARGV[2]
for i = 7, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  local notice, held_by, _, json = entry(value or '|||')
  if value and notice == ARGV[i + 1] and held_by == claim then
    if how == 'failed' then
      redis.call('HSET', KEYS[1], ARGV[i], notice .. '||' .. text(now + ARGV[5]) .. '|' .. json)
    else
      redis.call('HDEL', KEYS[1], ARGV[i])
    end
  end
end
local sent_ms = string.match(redis.call('HGET', KEYS[2], name) or '0', '^%d+')
if how == 'told' and ARGV[7] then sent_ms = text(now) end
redis.call('HSET', KEYS[2], name, sent_ms .. ' ' .. ARGV[6])
return {'noted', text(now)}
