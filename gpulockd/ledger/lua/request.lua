-- request: take a place in the queue, or the gpus at once when they are free and nobody earlier wants them.
-- One id serves every retry of the request; a granted id answers with the same token, an ended one 'gone'.
-- Where the store has changed since, a granted one begins after the freeze, under a token of the new epoch.
-- Sent by the waiting loop itself, so it also brings back a ticket that was away and confirms a claim.
--
-- KEYS[1]  the pool's `meta`; the names of its other keys follow from it (gpulockd/ledger/keys.py)
-- ARGV[1]  session    ARGV[2] ticket id    ARGV[3] wants (text)    ARGV[4] priority (-100 ... 100)
-- ARGV[5]  '1' to wait, '0' to answer 'busy' instead    ARGV[6] job (JSON, opaque)    ARGV[7] task    ARGV[8] task id
-- ARGV[9]  lock timeout (ms)    ARGV[10] ledger clock of the session's last answer (ms), '' if none
-- ARGV[11] lease to join, ''    ARGV[12] its token, ''
-- ARGV[13] ticket that was parked, whose stamp this one takes over, ''
-- returns  {'granted', ..., token, waited (ms), gpus} | {'joined', ..., token, lease, gpus}
--          | {'waiting', ..., place, queued, frozen (ms), why} | {'busy'} | {'gone', ..., reason} | {'late'}
--          | {'impossible', ..., kind, detail} | {'would_deadlock', ..., lease} | {'no_session'} | {'unopened'}
local session, id, words, waits, parked = ARGV[1], ARGV[2], ARGV[3], ARGV[5] == '1', ARGV[13]
local LATE_MS = 300000

local function granted(t)
  return books.answer('granted', text(t.token), text(math.max(0, t.granted_ms - t.stamp)), gpus.describe(gpus.split(t.gpus)))
end

local function joined(t)
  return books.answer('joined', text(t.token), t.of, gpus.describe(gpus.split(t.gpus)))
end

local function waiting()
  local place = redis.call('ZRANK', names.queue, id) or -1
  local why = books.frozen() and meta.frozen_why or ''
  return books.answer('waiting', text(place + 1), text(redis.call('ZCARD', names.queue)), text(books.frozen_ms()), why)
end

local refusal = begin(session)
if refusal then return refuse(refusal) end
local there = redis.call('EXISTS', names.base .. 'done:' .. id, names.base .. 'ticket:' .. id) > 0
local buried = there and redis.call('GET', names.base .. 'done:' .. id)
if buried then return books.answer('gone', buried) end
if ARGV[10] ~= '' and books.now - ARGV[10] > LATE_MS then return books.answer('late') end

local nobody_waits = redis.call('ZCARD', names.queue) == 0
local t, more = there and tickets.get(id), false
if t then
  if t.session ~= session then return books.answer('gone', 'foreign') end
  -- The answer before was not read: its process may have stood still meanwhile, and begins only now.
  if t.state == 'held' or t.state == 'member' then tickets.renew(t) end
  if (t.state == 'held' or t.state == 'claim') and books.is_of_before(t.token) then
    -- Somebody whom the store has lost may be there still, with a later token.
    if books.frozen() then return waiting() end
    tickets.token_anew(t)
  end
  if t.state == 'claim' and not books.frozen() then tickets.confirm(t) end
  if t.state == 'held' then return granted(t) end
  if t.state == 'member' then return members.in_doubt(t.of) and waiting() or joined(t) end
  if books.frozen() and t.state ~= 'away' then return waiting() end
  local kind, detail
  if not books.frozen() then kind, detail = limits.refusal(gpus.wants(t.wants), nobody_waits) end
  if kind then
    ends.ticket(t, 'abandoned')
    placing.place()
    return books.answer('impossible', kind, detail)
  end
  if t.state ~= 'away' then return waiting() end
else
  if meta.offered ~= '1' then words = limits.meant(words) end
  t = tickets.new(id, session, words, ARGV[6], ARGV[7], ARGV[8])
  t.priority, t.lock_timeout_ms = tonumber(ARGV[4]), tonumber(ARGV[9])
  if ARGV[11] ~= '' then
    local _, how = members.join(t, ARGV[11], ARGV[12])
    if how == 'joined' then return joined(t) end
    -- Behind the lease that it belongs to it could wait for ever, so it takes no place before the freeze is over.
    if how == 'in_doubt' then return waits and waiting() or books.answer('busy') end
    more = how == 'more'
    if more then waits = false end
  end
  if not books.frozen() and (words ~= 'exclusive:1:0:any' or meta.offered ~= '1' or #gpus.offered() == 0) then
    local kind, detail = limits.refusal(gpus.wants(words), nobody_waits)
    if kind then return books.answer('impossible', kind, detail) end
  end
  t.stamp = tickets.parked_stamp(parked) or books.next_stamp()
  t.score = t.stamp - t.priority * meta.priority_step_ms
end

local w = gpus.wants(t.wants)
local keys
if not books.frozen() then
  if nobody_waits then
    keys = gpus.pick(w)
  else
    local first, first_score = queue.head(w.text)
    if not first or queue.before(t.score, id, first_score, first) then keys = placing.find(w, t.score, id) end
  end
end
if keys then
  if t.state then queue.leave(id, w) else tickets.unpark(parked) end
  tickets.hold(t, keys)
  if next(books.freed) then placing.place() end
  return granted(t)
end
if not waits then return more and books.answer('would_deadlock', ARGV[11]) or books.answer('busy') end
local is_new = not t.state
t.state = 'waiting'
if is_new then
  tickets.enter(t)
  tickets.unpark(parked)
else
  tickets.write(t)
end
queue.enter(id, w, t.score)
if is_new then books.emit('lock_requested', tickets.told(t)) end
return waiting()
