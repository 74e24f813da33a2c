-- The books of a pool: its clock, its epoch, its counters of tokens and stamps.
--
-- Every verb begins with `begin` and ends with `books.answer`. In between it may change state; meta is written once,
-- by `answer`, except the token, which is always written before the lease that carries it.
--
-- The ledger clock is advanced by what the server's TIME moved since the last script, but never by more than one
-- step and never backwards; `last_ms` follows TIME in both directions. So neither a jump nor a stall of the server
-- can end a session whose process keeps it alive.

-- The fields of the pool's meta hash. What every script needs stands in three of them, `token`, `state` and `terms`,
-- because reading two dozen would cost more than the rest of an uncontended request; the others are read when one of
-- them is asked for. Numbers are made where they are used.
local names, meta
local cold = {__index = function(meta, wanted)
  setmetatable(meta, nil)
  local fields = redis.call('HGETALL', names.meta)
  for i = 1, #fields, 2 do
    if meta[fields[i]] == nil then meta[fields[i]] = fields[i + 1] end
  end
  return meta[wanted]
end}

local books = {
  changed = {},      -- plain fields to be written by `answer`
  freed = {},        -- gpus on which something may begin now: the work of `placing.place`
  now = 0,           -- ledger clock (ms)
  wall_ms = 0,       -- the server's TIME (ms), for printing
}

local named, names_known = {}, 0   -- first key of a pool -> all its names

local function names_of(keys)
  local found = named[keys[1]]
  if found then return found end
  if names_known > 256 then named, names_known = {}, 0 end
  local base = string.sub(keys[1], 1, -5)
  found = {meta = keys[1], sessions = keys[2], queue = keys[3], offered = keys[4], due = keys[5], held_back = keys[6],
    events = keys[7], counters = keys[8], offer = keys[9], base = base, pool = string.sub(base, 11, -3)}
  named[keys[1]], names_known = found, names_known + 1
  return found
end

-- Begins a call with nothing of the one before.
function books.start(keys, args)
  KEYS, ARGV = keys, args
  names = names_of(keys)
  books.changed, books.freed, books.terms_changed = {}, {}, false
  gpus.forget()
  holding_back.forget()
end

local function text(number)
  return string.format('%d', number)
end

function books.note(field, value)
  meta[field] = value
  books.changed[#books.changed + 1] = field
  books.changed[#books.changed + 1] = value
end

function books.note_term(name, value)
  meta[name] = value
  books.terms_changed = true
end

function books.frozen()
  return meta.frozen_until ~= '0'
end

function books.frozen_ms()
  return books.frozen() and math.max(0, meta.frozen_until - books.now) or 0
end

-- Reads the books and moves the clock. `terms` (the pool's session times) are given by the verbs that may open a
-- pool; for all others a pool without books is unopened. Returns false then.
function books.open(terms, known_pool)
  local packed = redis.call('HMGET', names.meta, 'state', 'terms', 'token')
  if not packed[1] and not terms then return false end
  local wall_ms, run_id = server.time_ms(), server.run_id()
  books.wall_ms = wall_ms
  if packed[1] then
    local last_ms, clock_ms, stamp, seq = string.match(packed[1], '(%S+) (%S+) (%S+) (%S+)')
    local t = books.terms_of(packed[2])
    meta = setmetatable({token = packed[3], stamp = stamp, seq = seq, run_id = t[1], epoch = t[2], ttl_ms = t[3],
      step_ms = t[4], keepalive_ms = t[5], claim_window_ms = t[6], priority_step_ms = t[7], frozen_until = t[8],
      cluster = t[9], offered = t[10], guarded = t[11]}, cold)
    books.now = clock_ms + math.max(0, math.min(wall_ms - last_ms, meta.step_ms))
  else
    meta = setmetatable({}, cold)
    books.now = wall_ms
  end
  if not packed[1] or run_id ~= meta.run_id then epochs.open(run_id, terms, known_pool) end
  return true
end

local read_terms, terms_read = nil, nil   -- the last packed terms, and what they say

function books.terms_of(packed)
  if packed ~= read_terms then
    read_terms = packed
    terms_read = {string.match(packed, '(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')}
  end
  return terms_read
end

function books.write()
  local fields = books.changed
  local n = #fields
  fields[n + 1] = 'state'
  fields[n + 2] = string.format('%d %d %d %d', books.wall_ms, books.now, meta.stamp, meta.seq)
  if books.terms_changed then
    fields[n + 3] = 'terms'
    fields[n + 4] = table.concat({meta.run_id, meta.epoch, text(meta.ttl_ms), text(meta.step_ms),
      text(meta.keepalive_ms), text(meta.claim_window_ms), text(meta.priority_step_ms), meta.frozen_until, meta.cluster,
      meta.offered, meta.guarded}, ' ')
  end
  books.changed, books.terms_changed = {}, false
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
  meta.stamp = math.max(meta.stamp + 1, books.now)
  return meta.stamp
end

local quoted, quotes_known = {}, 0   -- text -> JSON, over many calls

-- A text that comes again and again (a task, a gpu) as JSON.
function books.quote(words)
  local found = quoted[words]
  if found then return found end
  if quotes_known > 1024 then quoted, quotes_known = {}, 0 end
  found = cjson.encode(words)
  quoted[words], quotes_known = found, quotes_known + 1
  return found
end

-- What happened, in the same step as the change itself: once in the stream, once on the channel, once counted.
-- `facts` are the fields of a JSON object, without its braces.
function books.emit(kind, facts)
  local seq = meta.seq + 1
  meta.seq = seq
  local json = string.format('{"type":"%s","seq":%d,"at_ms":%d,"pool":"%s",%s}', kind, seq, books.wall_ms, names.pool, facts)
  redis.call('XADD', names.events, 'MAXLEN', '~', 10000, text(seq) .. '-1', 'e', json)
  redis.call('PUBLISH', names.events, json)
  redis.call('HINCRBY', names.counters, kind, 1)
end

-- The fields of an event that happens seldom.
function books.facts(event)
  return string.sub(cjson.encode(event), 2, -2)
end

-- Rings a session's channel. Returns how many listen: 0 means that nobody does (on a cluster too, by SPUBLISH).
function books.ring(session, message)
  return redis.call(meta.cluster == '1' and 'SPUBLISH' or 'PUBLISH', names.base .. 'session:' .. session, message)
end
