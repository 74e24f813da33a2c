-- What the verbs of alerts share. They live in the fleet's slot, beside the pools: one hash a noun, every value a text
-- that Python writes and reads; these verbs know of it only the word in front. Times are the server's wall clock (ms).

local alerts = {}

-- Begins a call with nothing of the one before.
function alerts.start(keys, args)
  if not redis then redis, cjson, string, table, math, ipairs, pairs, next, tonumber, setmetatable, unpack = globals() end
  KEYS, ARGV = keys, args
end

local function now_ms()
  return server.time_ms()
end

local function text(number)
  return string.format('%d', number)
end

-- An entry of the outbox: notice id, who is sending it, until when that is believed or it must rest (ms), the notice.
local function entry(value)
  local notice, claim, until_ms, json = string.match(value, '^([^|]*)|([^|]*)|([^|]*)|(.*)$')
  return notice, claim, tonumber(until_ms), json
end
