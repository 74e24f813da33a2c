-- snapshot: all of a pool at one moment; of the queue, one page.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session, ''    ARGV[2] first place of the page (0 ...)    ARGV[3] length of the page (1 ... 256)
-- ARGV[4]  a boot id, '': how many sessions of that boot live here, of the first 10,000
-- returns  {'snapshot', ..., meta (flat), gpus [[gpu as answered, state, lease, shared, used (MiB), offered]], leases [[flat, id, process]], queue [[flat, id, process]],
--          queued, sessions, next due on the ledger clock (ms) or '', counters (flat), host, sessions of the boot} | {'no_session'}
--          | {'unopened'}
local refusal = begin(ARGV[1])
if refusal then return refuse(refusal) end
local first, length = tonumber(ARGV[2]), math.min(256, tonumber(ARGV[3]))

local function record(id)
  local fields = redis.call('HGETALL', names.base .. 'ticket:' .. id)
  local session = tickets.session_of(fields)
  local process = session and redis.call('HGET', names.base .. 'session:' .. session, 'process')
  return {fields, id, process or ''}
end

local keys, listed = {}, {}
local function list(key)
  if listed[key] then return end
  listed[key] = true
  local g = gpus.get(key)
  keys[#keys + 1] = {gpus.describe({key})[1], g.state, g.exclusive, text(g.shared), text(g.used_mib), g.offered and '1' or ''}
end
for _, key in ipairs(gpus.offered()) do list(key) end

local leases, page, next_due = {}, {}, nil
local entries = redis.call('ZRANGE', names.due, 0, -1, 'WITHSCORES')
for i = 1, #entries, 2 do
  local id = string.match(entries[i], '^lease:(.+)$')
  if id then
    local lease, t = record(id), tickets.get(id)
    lease[1][#lease[1] + 1], lease[1][#lease[1] + 2] = 'due_ms', entries[i + 1]
    leases[#leases + 1] = lease
    for _, key in ipairs(gpus.split(t and t.gpus)) do list(key) end
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
