-- alert_claim: takes what is to be told over one channel now, so that nobody else tells it. A claim that was not
-- followed by `alert_sent` lapses, and the notices can be claimed again.
--
-- KEYS[1]  outbox    KEYS[2] channels
-- ARGV[1]  who tells (a pool)    ARGV[2] the channel    ARGV[3] who claims: one process    ARGV[4] how long it holds (ms)
-- ARGV[5]  the least time between two messages (ms)    ARGV[6] the most notices
-- ARGV[7]  pools, separated by ',', whose daemons are gone: what they had to tell over a channel of that name is told too
-- returns  {'claimed', {field, notice id, notice, ...}} | {'later', ms until something may be told} | {'nothing'}
local by, channel, claim, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[6])
local now = now_ms()
local owners, due, next_ms = {[by] = true}, {}, nil
for pool in string.gmatch(ARGV[7], '[^,]+') do owners[pool] = true end
local outbox = redis.call('HGETALL', KEYS[1])
for i = 1, #outbox, 2 do
  local field = outbox[i]
  local owner, over = string.match(field, '^([^|]*)|([^|]*)|')
  if over == channel and owners[owner] then
    local notice, held_by, until_ms, json = entry(outbox[i + 1])
    -- Each pool has one daemon, so another claim of the own pool is that of a process that has ended.
    local orphaned = owner == by and held_by ~= '' and held_by ~= claim
    if until_ms > now and not orphaned then
      next_ms = math.min(next_ms or until_ms, until_ms)
    elseif #due < 3 * most then
      due[#due + 1], due[#due + 2], due[#due + 3] = field, notice, json
    end
  end
end
if not due[1] then
  if next_ms then return {'later', text(next_ms - now)} end
  return {'nothing'}
end
local sent_ms = tonumber(string.match(redis.call('HGET', KEYS[2], by .. '|' .. channel) or '0', '^%d+'))
-- A clock that went back must not hold messages up.
if sent_ms <= now and now - sent_ms < tonumber(ARGV[5]) then return {'later', text(sent_ms + ARGV[5] - now)} end
for i = 1, #due, 3 do
  redis.call('HSET', KEYS[1], due[i], due[i + 1] .. '|' .. claim .. '|' .. text(now + ARGV[4]) .. '|' .. due[i + 2])
end
return {'claimed', due}
