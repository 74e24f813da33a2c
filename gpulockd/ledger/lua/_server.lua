-- The beginning of the library: the call under way, and what the server says of itself. Tests add to this chunk to turn
-- the clock by hand.
--
-- The library is loaded once per server process, so its functions are made once and not at each call. Its locals
-- outlive a call: whatever belongs to one call is made anew by `books.start`.

local KEYS, ARGV   -- of the call under way

-- What the rooms use of Lua and of the server. A global costs two look-ups each time, so these are locals; they cannot
-- be read while the library is loaded, so `books.start` fills them at the first call.
local register = redis.register_function

local function globals()
  return redis, cjson, string, table, math, ipairs, pairs, next, tonumber, setmetatable, unpack
end

local redis, cjson, string, table, math, ipairs, pairs, next, tonumber, setmetatable, unpack

local function room(fill)
  local filled = {}
  fill(filled)
  return filled
end

local server = {}

function server.time_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

function server.info(section)
  return redis.call('INFO', section)
end

local run_id   -- of this server process, which keeps it for life

function server.run_id()
  if not run_id then run_id = string.match(server.info('server'), 'run_id:(%w+)') end
  return run_id
end
