-- What the server says of itself, and how the rooms of the prelude are opened. Tests put another chunk in the place of
-- `server` to turn the clock by hand.
--
-- A room is a table of functions that is filled when it is first entered: most scripts need few of them, and making
-- all closures at each call costs more than all commands of an uncontended request.

local entering = {__index = function(room, name)
  local fill = rawget(room, 'fill')
  room.fill = nil
  setmetatable(room, nil)
  fill(room)
  return room[name]
end}

local function room(fill)
  return setmetatable({fill = fill}, entering)
end

local server = {}

function server.time_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

function server.info(section)
  return redis.call('INFO', section)
end

function server.run_id(info)
  local _, last = string.find(info, 'run_id:', 1, true)
  return string.sub(info, last + 1, last + 40)
end
