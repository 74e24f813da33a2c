-- The books of a pool: its clock, its epoch, its counters of tokens and stamps.
--
-- Every verb begins with `begin` and ends with `books.answer`. In between it may change state; meta is written once,
-- by `answer`, except the token, which is always written before the lease that carries it.
--
-- The ledger clock is advanced by what the server's TIME moved since the last script, but never by more than one
-- step and never backwards; `last_ms` follows TIME in both directions. So neither a jump nor a stall of the server
-- can end a session whose process keeps it alive.

-- What the pool's meta hash says: `token`, `stamp`, `seq` and `due_ms` as this call has them, behind them the terms,
-- which change seldom, and behind those the fields that are read from the hash only when one of them is asked for.
local names, meta

local books = {
  changed = {},      -- plain fields to be written by `answer`
  freed = {},        -- gpus on which something may begin now: the work of `placing.place`
  now = 0,           -- ledger clock (ms)
  wall_ms = 0,       -- the server's TIME (ms), for printing
}

local POOLS_KNOWN = 2048   -- of so many pools what seldom changes is kept from call to call: some 20 KiB each
local named, names_known = {}, 0   -- meta key of a pool -> all its names

local function names_of(meta_key)
  local found = named[meta_key]
  if found then return found end
  if names_known >= POOLS_KNOWN then named, names_known = {}, 0 end
  local base = string.sub(meta_key, 1, -5)
  found = {base = base, pool = string.sub(base, 11, -3)}
  for _, name in ipairs({'meta', 'sessions', 'queue', 'offered', 'gpus', 'due', 'held_back', 'events', 'counters', 'offer'}) do
    found[name] = base .. name
  end
  named[meta_key], names_known = found, names_known + 1
  return found
end

local cold_fields   -- of the meta hash, read once a call

local function cold(_, wanted)
  if not cold_fields then
    cold_fields = {}
    local fields = redis.call('HGETALL', names.meta)
    for i = 1, #fields, 2 do cold_fields[fields[i]] = fields[i + 1] end
  end
  return cold_fields[wanted]
end

-- Begins a call with nothing of the one before.
function books.start(keys, args)
  if not redis then redis, cjson, string, table, math, ipairs, pairs, next, tonumber, setmetatable, unpack = globals() end
  KEYS, ARGV = keys, args
  names = names_of(keys[1])
  books.freed, books.terms_changed, books.token_raised, books.taken, cold_fields = {}, false, false, false, nil
  if books.changed[1] then books.changed = {} end
  gpus.forget()
  tickets.forget()
  holding_back.forget()
end

local TEXTS_KNOWN = 512
local texts, texts_known = {}, 0   -- number -> its digits: a call writes the same few again and again

local function text(number)
  local found = texts[number]
  if found then return found end
  if texts_known >= TEXTS_KNOWN then texts, texts_known = {}, 0 end
  found = string.format('%d', number)
  texts[number], texts_known = found, texts_known + 1
  return found
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

-- The terms are one text, words and then the offered gpus as JSON, parsed once for all calls that read the same.
local TERMS = {'run_id', 'epoch', 'ttl_ms', 'step_ms', 'keepalive_ms', 'claim_window_ms', 'priority_step_ms',
  'hold_back_ms', 'settle_ms', 'settle_policy', 'frozen_until', 'cluster', 'offered', 'guarded', 'version'}
local IN_MS = {ttl_ms = true, step_ms = true, keepalive_ms = true, claim_window_ms = true, priority_step_ms = true,
  hold_back_ms = true, settle_ms = true}
local NO_TERMS = {__index = cold}
local terms_of, terms_known = {}, 0   -- text -> metatable of `meta`

-- What every answer tells of the terms.
local function told(terms)
  local epoch = terms.epoch .. ' v' .. (terms.version or '0') .. (terms.guarded == '1' and ' guarded' or '')
  return {epoch, text(terms.ttl_ms), text(terms.step_ms), text(terms.keepalive_ms)}
end

local function read_terms(packed)
  local found, n = setmetatable({}, NO_TERMS), 0
  local words, cards = string.match(packed, '^([^%[]+) (%[.*)$')
  for word in string.gmatch(words, '%S+') do
    n = n + 1
    found[TERMS[n]] = IN_MS[TERMS[n]] and tonumber(word) or word
  end
  found.cards_json, found.told = cards, told(found)
  found.epoch_token = tonumber(string.match(found.epoch, '%-(%d+)$') or 0)
  found.cards, found.offered_keys = gpus.cards_of(cards)
  if terms_known >= POOLS_KNOWN then terms_of, terms_known = {}, 0 end
  terms_of[packed], terms_known = {__index = found}, terms_known + 1
  return terms_of[packed]
end

-- What the state's text says is kept beside the text: the next call that reads the same need not take it apart.
local function keep_state(state, last_ms, clock_ms, stamp, seq, due_ms)
  names.state, names.last_ms, names.clock_ms, names.stamp, names.seq, names.due_ms = state, last_ms, clock_ms, stamp, seq, due_ms
end

local function read_state(state)
  local last_ms, clock_ms, stamp, seq, due_ms = string.match(state, '(%S+) (%S+) (%S+) (%S+) (%S+)')
  keep_state(state, last_ms + 0, clock_ms + 0, stamp + 0, seq + 0, due_ms + 0)
end

-- The state as it is after `events` more.
local function state_text(events)
  local wall_ms, now, stamp, seq, due_ms = books.wall_ms, books.now, meta.stamp, meta.seq + events, meta.due_ms
  local state = text(wall_ms) .. ' ' .. text(now) .. ' ' .. text(stamp) .. ' ' .. text(seq) .. ' ' .. text(due_ms)
  keep_state(state, wall_ms, now, stamp, seq, due_ms)
  return state
end

-- Reads the books and moves the clock. `terms` (the pool's session times) are given by the verbs that may open a
-- pool; for all others a pool without books is unopened. Returns false then.
function books.open(terms, known_pool)
  local packed = redis.call('HMGET', names.meta, 'state', 'terms', 'token', 'gpus')
  local state = packed[1]
  if not state and not terms then return false end
  local wall_ms, run_id = server.time_ms(), server.run_id()
  books.wall_ms = wall_ms
  if state then
    if state ~= names.state then read_state(state) end
    meta = setmetatable({token = packed[3] + 0, stamp = names.stamp, seq = names.seq, due_ms = names.due_ms,
      gpus = packed[4] or ''},
      terms_of[packed[2]] or read_terms(packed[2]))
    local last_ms = names.last_ms
    books.now = names.clock_ms + math.max(0, math.min(wall_ms - last_ms, meta.step_ms))
  else
    meta = setmetatable({token = 0, stamp = 0, seq = 0, due_ms = 0, gpus = '', cards = {}, offered_keys = {}}, NO_TERMS)
    books.now = wall_ms
  end
  if not state or run_id ~= meta.run_id then epochs.open(run_id, terms, known_pool) end
  return true
end

-- Has `take` written the state as it is by now?
local function state_taken()
  return books.taken and names.stamp == meta.stamp and names.seq == meta.seq and names.due_ms == meta.due_ms
end

function books.write()
  if books.terms_changed then
    local words = {}
    for i, name in ipairs(TERMS) do words[i] = IN_MS[name] and text(meta[name]) or meta[name] or '0' end
    words[#words + 1] = meta.cards_json
    books.note('terms', table.concat(words, ' '))
    meta.told, books.terms_changed = told(meta), false
  end
  if books.token_raised then books.note('token', text(meta.token)) end
  local on_gpus = gpus.text()   -- a gpu is freed last
  if on_gpus then books.note('gpus', on_gpus) end
  gpus.keep()
  local fields = books.changed
  if not fields[1] then return state_taken() or redis.call('HSET', names.meta, 'state', state_text(0)) end
  fields[#fields + 1] = 'state'
  fields[#fields + 1] = state_text(0)
  books.changed = {}
  redis.call('HSET', names.meta, unpack(fields))
end

-- The end of every verb: writes the books and returns {word, epoch, ttl, step, keepalive, now, ...}; behind the epoch
-- stand the version of what the pool publishes, and the word `guarded` if it is.
function books.answer(word, ...)
  books.write()
  local terms = meta.told
  return {word, terms[1], terms[2], terms[3], terms[4], text(books.now), ...}
end

-- No token up to this one is given again.
function books.raise_token(token)
  if token <= meta.token then return meta.token end
  meta.token, books.token_raised = token, true
  return token
end

-- Token and gpus are written before the lease that has them: a cut in between leaves a gpu taken by nobody. The state
-- goes with them as it will be after `events` more, so that mostly nothing is left for `write`.
function books.take(events)
  local on_gpus, token = gpus.text(), books.token_raised and text(meta.token)
  books.token_raised = false
  if token and on_gpus then
    redis.call('HSET', names.meta, 'token', token, 'gpus', on_gpus, 'state', state_text(events))
    books.taken = true
  elseif token then
    redis.call('HSET', names.meta, 'token', token)
  elseif on_gpus then
    redis.call('HSET', names.meta, 'gpus', on_gpus)
  end
end

function books.next_token()
  return books.raise_token(meta.token + 1)
end

-- Was this token given before the epoch? What the store has lost of then may have given its gpus on since.
function books.is_of_before(token)
  return token <= meta.epoch_token
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
  local number = text(seq)
  local json = '{"type":"' .. kind .. '","seq":' .. number .. ',"at_ms":' .. text(books.wall_ms) .. ',"pool":"' .. names.pool
    .. '",' .. facts .. '}'
  redis.call('XADD', names.events, number .. '-1', 'e', json)
  if seq % 64 == 0 then redis.call('XTRIM', names.events, 'MAXLEN', '~', '10000') end
  redis.call('PUBLISH', names.events, json)
  redis.call('HINCRBY', names.counters, kind, '1')
end

-- The fields of an event that happens seldom.
function books.facts(event)
  return string.sub(cjson.encode(event), 2, -2)
end

-- Rings a session's channel. Returns how many listen: 0 means that nobody does (on a cluster too, by SPUBLISH).
function books.ring(session, message)
  return redis.call(meta.cluster == '1' and 'SPUBLISH' or 'PUBLISH', names.base .. 'session:' .. session, message)
end
