-- The books of a pool: its clock, its epoch, its counters of tokens and stamps.
--
-- Every verb begins with `begin` and ends with `books.answer`. In between it may change state; meta is written once,
-- by `answer`, except the token, which is always written before the lease that carries it.
--
-- The ledger clock is advanced by what the server's TIME moved since the last script, but never by more than one
-- step and never backwards; `last_ms` follows TIME in both directions. So neither a jump nor a stall of the server
-- can end a session whose process keeps it alive.

local names = {meta = KEYS[1], sessions = KEYS[2], queue = KEYS[3], offered = KEYS[4], due = KEYS[5],
  held_back = KEYS[6], events = KEYS[7], counters = KEYS[8], offer = KEYS[9], base = string.sub(KEYS[1], 1, -5)}

local meta = {}      -- the fields of the pool's meta hash; numbers are made where they are used
local books = {
  changed = {},      -- the fields to be written by `answer`
  freed = {},        -- gpus on which something may begin now: the work of `placing.place`
  now = 0,           -- ledger clock (ms)
  wall_ms = 0,       -- the server's TIME (ms), for printing
}

local function text(number)
  return string.format('%.0f', number)
end

function books.note(field, value)
  meta[field] = value
  books.changed[field] = value
end

function books.frozen()
  return meta.frozen_until ~= '0' and meta.frozen_until ~= 0
end

function books.frozen_ms()
  return books.frozen() and math.max(0, meta.frozen_until - books.now) or 0
end

-- Reads the books and moves the clock. `terms` (the pool's session times) are given by the verbs that may open a
-- pool; for all others a pool without books is unopened. Returns false then.
function books.open(terms, known_pool)
  local fields = redis.call('HGETALL', names.meta)
  for i = 1, #fields, 2 do meta[fields[i]] = fields[i + 1] end
  if not meta.run_id and not terms then return false end
  local wall_ms = server.time_ms()
  local info = server.info('server')
  local run_id = server.run_id(info)
  if meta.run_id then
    books.now = meta.clock_ms + math.max(0, math.min(wall_ms - meta.last_ms, meta.step_ms))
  else
    books.now = wall_ms
  end
  books.wall_ms = wall_ms
  books.note('last_ms', wall_ms)
  books.note('clock_ms', books.now)
  if run_id ~= meta.run_id then epochs.open(run_id, info, terms, known_pool) end
  return true
end

function books.write()
  local fields = {}
  for name, value in pairs(books.changed) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  books.changed = {}
  redis.call('HSET', names.meta, unpack(fields))
end

-- The end of every verb: writes the books and returns {word, epoch, ttl, step, keepalive, now, ...}.
function books.answer(word, ...)
  books.write()
  return {word, meta.epoch, meta.ttl_ms, meta.step_ms, meta.keepalive_ms, text(books.now), ...}
end

function books.next_token()
  local token = meta.token + 1
  meta.token = token
  redis.call('HSET', names.meta, 'token', token)
  return token
end

-- Arrival stamps strictly increase, so that equal wants have one order.
function books.next_stamp()
  books.note('stamp', math.max(meta.stamp + 1, books.now))
  return meta.stamp
end

-- What happened, in the same step as the change itself: once in the stream, once on the channel, once counted.
function books.emit(kind, event)
  local seq = meta.seq + 1
  books.note('seq', seq)
  event.type, event.seq, event.at_ms, event.pool = kind, seq, books.wall_ms, string.match(names.base, '{(.*)}')
  local json = cjson.encode(event)
  redis.call('XADD', names.events, 'MAXLEN', '~', 10000, text(seq) .. '-1', 'e', json)
  redis.call('PUBLISH', names.events, json)
  redis.call('HINCRBY', names.counters, kind, 1)
end

-- Rings a session's channel. Returns how many listen: 0 means that nobody does (on a cluster too, by SPUBLISH).
function books.ring(session, message)
  return redis.call(meta.cluster == '1' and 'SPUBLISH' or 'PUBLISH', names.base .. 'session:' .. session, message)
end
