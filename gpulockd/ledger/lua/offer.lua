-- offer: a daemon puts the gpus of its host at the pool's disposal. An offer stands until another replaces it, ends
-- no lease, and adopts a slot that was used before it. The daemon that owns the store may vouch that nothing was lost.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  session of the daemon    ARGV[2] boot id    ARGV[3] host    ARGV[4] machine    ARGV[5] terms (JSON)
-- ARGV[6]  defaults for clients (JSON, opaque)    ARGV[7] gpus: [{key, index, uuid, name, memory_mib}] (JSON)
-- ARGV[8]  run id under which the store is complete, '' if it may have lost something
-- ARGV[9]  is the pool in the fleet's list: '1' | '0' | '?'    ARGV[10] '1': nobody has used this store in this boot
-- ARGV[11] '1': from now on the daemon's guard lets in who begins    ARGV[12] '1': it has said all that are in, after
--          an offer of this session in the same epoch: what it said to an earlier one may be lost
-- ARGV[13] the highest token that it has let in    ARGV[14] who offers, the same over restarts of this daemon
-- ARGV[15] version of the defaults as the daemon knows it, '' if it has just begun
-- returns  {'offered', ..., how its epoch opened, frozen (ms)} | {'fleet?'} | {'offered_elsewhere', ..., host, boot id}
--          | {'no_session'}
local session, boot_id, host, machine, complete, known_pool = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[8], ARGV[9]
local terms, fresh = cjson.decode(ARGV[5]), ARGV[10] == '1'
if known_pool == '?' and redis.call('HEXISTS', names.meta, 'state') == 0 then return {'fleet?'} end
local refusal = begin('', terms, known_pool)
if refusal then return refuse(refusal) end
if not redis.call('ZSCORE', names.sessions, session) then return books.answer('no_session') end

local before_boot = meta.offered == '1' and meta.boot_id
local same_machine = redis.call('HGET', names.offer, 'machine') == machine
if before_boot and before_boot ~= boot_id and not same_machine and redis.call('ZSCORE', names.sessions, meta.offer_session) then
  return books.answer('offered_elsewhere', redis.call('HGET', names.offer, 'host') or '', before_boot)
end
-- What ran under an earlier boot of this host is dead, and has left its gpus.
local rebooted = same_machine and before_boot and before_boot ~= boot_id
if rebooted then books.note_term('guarded', '0') end
-- A daemon that was killed comes back under another session; any other daemon of this host is a second one.
local before = meta.offered == '1' and meta.offer_session
if before and before ~= session and redis.call('ZSCORE', names.sessions, before) then
  if redis.call('HGET', names.offer, 'offerer') ~= ARGV[14] and before_boot == boot_id then
    return books.answer('offered_elsewhere', redis.call('HGET', names.offer, 'host') or '', before_boot)
  end
  due.end_session(before, 'died')
end
-- The store lost nothing: true of books that survived, and of a store that nobody has used since this boot began.
local vouched = complete ~= '' and complete == meta.run_id
if vouched and books.frozen() and (fresh or meta.frozen_why == 'store_changed') then epochs.unfreeze('nothing_lost') end
local in_this_epoch = before == session and meta.offer_epoch == meta.epoch
if ARGV[12] == '1' and in_this_epoch and books.frozen() then epochs.known_by_guard() end
books.raise_token(tonumber(ARGV[13]))
if rebooted then
  for _, id in ipairs(redis.call('ZRANGE', names.sessions, 0, -1)) do
    if redis.call('HGET', names.base .. 'session:' .. id, 'boot_id') == before_boot then due.end_session(id, 'died') end
  end
end

local stays = {}
for _, g in ipairs(cjson.decode(ARGV[7])) do
  stays[g.key] = true
  redis.call('ZADD', names.offered, g.index, g.key)
end
for _, key in ipairs(redis.call('ZRANGE', names.offered, 0, -1)) do
  if not stays[key] then
    redis.call('ZREM', names.offered, key)
    redis.call('ZREM', names.due, 'settle:' .. key)
    local g = gpus.get(key)
    g.state = 'ready'
    gpus.write(g)
    holding_back.drop_choices_of(key)
  end
end
gpus.offer(ARGV[7])
for _, key in ipairs(gpus.offered()) do
  local g = gpus.get(key)
  -- A cut script can leave a gpu taken by a lease that is not there.
  if g.exclusive ~= '' and redis.call('EXISTS', names.base .. 'ticket:' .. g.exclusive) == 0 then
    g.exclusive = ''
    gpus.write(g)
  end
end
epochs.adopt(terms)
books.note_term('offered', '1')
books.note_term('guarded', ARGV[11])
books.note('offer_session', session)
books.note('offer_epoch', meta.epoch)
books.note('boot_id', boot_id)
redis.call('HSET', names.offer, 'host', host, 'machine', machine, 'offerer', ARGV[14])
published.offer(ARGV[6], ARGV[15])
placing.free_all()
placing.place()
return books.answer('offered', meta.opened or '', text(books.frozen_ms()))
