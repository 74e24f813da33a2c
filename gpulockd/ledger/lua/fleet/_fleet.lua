-- What the fleet's verbs share. Their documents are opaque here: only Python reads and writes JSON, the scripts join it.
-- Numbers of revisions are texts as they come, so that a field's name is never rounded.

local fleet = {}
local names = {}

local MOST_REVISIONS = 1000
local LEAST_AUDITED = '100000'

-- Begins a call with nothing of the one before.
function fleet.start(keys, args)
  if not redis then redis, cjson, string, table, math, ipairs, pairs, next, tonumber, setmetatable, unpack = globals() end
  KEYS, ARGV = keys, args
  names = {config = keys[1], revisions = keys[2], marks = keys[3], audit = keys[4], validated = keys[5],
    rollout = keys[6], bases = keys[7]}
end

local function text(number)
  return string.format('%d', number)
end

-- The number of the current revision as a text, or nil.
function fleet.current()
  return redis.call('HGET', names.config, 'current') or nil
end

-- A revision and its mark, '' for what is not there.
function fleet.revision(number)
  if not number then return '', '' end
  return redis.call('HGET', names.revisions, number) or '', redis.call('HGET', names.marks, number) or ''
end

-- The end of every verb: {word, the server's TIME (ms), ...}.
function fleet.answer(word, ...)
  return {word, text(server.time_ms()), ...}
end

-- An answer about one revision.
function fleet.told(word, number)
  return fleet.answer(word, fleet.revision(number))
end

-- `line` is a JSON object with at least one field.
function fleet.note(line, number)
  local revision = number and ',"revision":' .. number or ''
  redis.call('XADD', names.audit, 'MAXLEN', '~', LEAST_AUDITED, '*', 'a',
    '{"at_ms":' .. text(server.time_ms()) .. revision .. ',' .. string.sub(line, 2))
end

local cluster   -- what kind of server this is, which it keeps for life

-- A hint to who listens; the state decides.
function fleet.ring(word, number)
  if cluster == nil then cluster = string.find(server.info('server'), '_mode:cluster', 1, true) ~= nil end
  redis.call(cluster and 'SPUBLISH' or 'PUBLISH', names.config, word .. ' ' .. number)
end

-- A revision that is too old is forgotten, unless it is the stable one.
function fleet.forget(number)
  if number >= 0 and text(number) ~= redis.call('HGET', names.config, 'stable') then
    redis.call('HDEL', names.revisions, text(number))
    redis.call('HDEL', names.marks, text(number))
  end
end
