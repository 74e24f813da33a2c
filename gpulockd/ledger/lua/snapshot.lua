-- snapshot: all of a pool at one moment; of the queue, one page.
--
-- KEYS     the pool's fixed keys
-- ARGV[1]  session, ''    ARGV[2] first place of the page (0 ...)    ARGV[3] length of the page (1 ... 256)
-- ARGV[4]  a boot id, '': how many sessions of that boot live here, of the first 10,000
-- returns  {'snapshot', ..., meta (flat), gpus [[flat, key]], leases [[flat, id, process]], queue [[flat, id, process]],
--          queued, sessions, next due on the ledger clock (ms) or '', counters (flat), host, sessions of the boot} | {'no_session'}
--          | {'unopened'}
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local first, length = tonumber(ARGV[2]), math.min(256, tonumber(ARGV[3]))

local function record(id)
  local ticket = names.base .. 'ticket:' .. id
  local session = redis.call('HGET', ticket, 'session')
  local process = session and redis.call('HGET', names.base .. 'session:' .. session, 'process')
  return {redis.call('HGETALL', ticket), id, process or ''}
end

local keys, listed = {}, {}
local function list(key)
  if listed[key] then return end
  listed[key] = true
  keys[#keys + 1] = {redis.call('HGETALL', names.base .. 'gpu:' .. key), key}
end
for _, key in ipairs(gpus.offered()) do list(key) end

local leases, page, next_due = {}, {}, nil
for _, entry in ipairs(redis.call('ZRANGE', names.due, 0, -1)) do
  local id = string.match(entry, '^lease:(.+)$')
  if id then
    leases[#leases + 1] = record(id)
    for _, key in ipairs(gpus.split(redis.call('HGET', names.base .. 'ticket:' .. id, 'gpus') or '')) do list(key) end
    for _, member in ipairs(redis.call('SMEMBERS', names.base .. 'members:' .. id)) do
      leases[#leases + 1] = record(member)
    end
  end
end
for i, id in ipairs(redis.call('ZRANGE', names.queue, first, first + length - 1)) do page[i] = record(id) end
for _, source in ipairs({names.sessions, names.due}) do
  local at = tonumber(redis.call('ZRANGE', source, 0, 0, 'WITHSCORES')[2])
  if at and (not next_due or at < next_due) then next_due = at end
end
if books.frozen() then next_due = math.min(next_due or math.huge, tonumber(meta.frozen_until)) end
local of_boot = 0
for _, id in ipairs(ARGV[4] ~= '' and redis.call('ZRANGE', names.sessions, 0, 9999) or {}) do
  if redis.call('HGET', names.base .. 'session:' .. id, 'boot_id') == ARGV[4] then of_boot = of_boot + 1 end
end
local facts = {'epoch', meta.epoch, 'last_ms', text(books.wall_ms), 'token', text(meta.token), 'offered', meta.offered,
  'guarded', meta.guarded, 'boot_id', meta.boot_id or '', 'frozen_until', meta.frozen_until,
  'frozen_why', meta.frozen_why or ''}
return books.answer('snapshot', facts, keys, leases, page, text(redis.call('ZCARD', names.queue)),
  text(redis.call('ZCARD', names.sessions)), next_due and text(next_due) or '', redis.call('HGETALL', names.counters),
  redis.call('HGET', names.offer, 'host') or '', text(of_boot))
