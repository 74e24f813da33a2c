-- reach: the daemon has seen a lease at an age, or its task silent for a time, or an operator asks its holder to stop,
-- which is no age. It is written on the lease and told once,
-- whoever asks again; a holder that is to stop is rung each time, for a ring may be lost, and its keepalives tell it too.
-- It ends nothing.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session, ''    ARGV[2] lease id    ARGV[3] token
-- ARGV[4]  warning | soft | hard | silent | operator    ARGV[5] the age or silence that counts (ms)
-- ARGV[6]  'stop': the holder is asked to stop, ''    ARGV[7] 'manual': only what the task says counts as a sign of life
-- returns  {'reached', ..., level before} | {'noted', ..., level before}: told before
--          | {'early', ..., level before}: not so old, or heard of meanwhile
--          | {'gone', ..., reason} | {'stale', ..., present token} | {'no_session'} | {'unopened'}
local id, level, stop = ARGV[2], ARGV[4], ARGV[6] == 'stop'
local RANK = {[''] = 0, warning = 1, soft = 2, hard = 3}
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local t = tickets.get(id)
if not t then return books.answer('gone', redis.call('GET', names.base .. 'done:' .. id) or 'unknown') end
if t.state ~= 'held' or text(t.token) ~= ARGV[3] then return books.answer('stale', text(t.token)) end

local before = t.level or ''
local since, new = t.granted_ms, RANK[level] and RANK[level] > RANK[before]
if level == 'silent' then
  -- Whatever renews a lease puts its own end at one lock timeout from then.
  local renewed = redis.call('ZSCORE', names.due, 'lease:' .. id) - t.lock_timeout_ms
  since = ARGV[7] == 'manual' and tonumber(t.beat_ms or since) or renewed
  new = tonumber(t.missed_ms or -1) < since
end
if level == 'operator' then new = not t.asked end
if books.now - since < tonumber(ARGV[5]) then return books.answer('early', before) end

if stop then
  if not t.stop then tickets.mark(t, 'stop', '1') end
  local rung = {t}
  for _, member in ipairs(redis.call('SMEMBERS', names.base .. 'members:' .. id)) do
    rung[#rung + 1] = tickets.get(member)
  end
  for _, one in ipairs(rung) do books.ring(one.session, 'stop ' .. one.id) end
elseif level == 'soft' and not t.unrung then
  tickets.mark(t, 'unrung', '1')   -- an earlier version asks by a ring alone: here is none to believe
end
if not new then return books.answer('noted', before) end
local mark = level == 'silent' and 'missed_ms' or level == 'operator' and 'asked' or 'level'
tickets.mark(t, mark, mark == 'missed_ms' and text(books.now) or mark == 'asked' and '1' or level)
local kind = level == 'silent' and 'heartbeat_missed' or stop and 'stop_requested' or 'timeout_warned'
books.emit(kind, tickets.told(t, level))
return books.answer('reached', before)
