-- history: a page of revisions, latest first. Behind the last of the row there may be the stable one.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  number before which the page begins, '' for the latest    ARGV[3] how many (1 ... 1000)
-- returns  {'history', TIME (ms), {revision (JSON), mark, ...}}
local current = fleet.current()
if not current then return fleet.answer('history', {}) end
local count, found = math.min(MOST_REVISIONS, math.max(1, tonumber(ARGV[3]))), {}
local before = ARGV[2] ~= '' and math.min(ARGV[2], current + 1) or current + 1
local last = math.max(0, current - MOST_REVISIONS + 1)

local function add(number)
  local revision, mark = fleet.revision(text(number))
  if revision ~= '' then found[#found + 1], found[#found + 2] = revision, mark end
end
for number = before - 1, last, -1 do
  if #found >= 2 * count then break end
  add(number)
end
local stable = tonumber(redis.call('HGET', names.config, 'stable') or last)
if #found < 2 * count and stable < last and stable < before then add(stable) end
return fleet.answer('history', found)
