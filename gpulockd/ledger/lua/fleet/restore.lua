-- restore: brings back what a daemon has kept, to a store that has lost it. It only ever adds to the same history: the
-- store has no revision, or only the first one, or one from which the kept ones go on. What has gone another way stays.
-- Where the kept ones are those of the store, or older ones of it, bases and lines of the audit that it lacks are added.
--
-- KEYS     the fleet's, and KEYS[7] the bases of a pool    ARGV[1] '' (no session)
-- ARGV[2]  kept current number    ARGV[3] its id    ARGV[4] kept stable number, ''    ARGV[5] its live document (JSON)
-- ARGV[6]  line of the audit (a JSON object)    ARGV[7] rollout's version, '' for none    ARGV[8] its state (JSON)
-- ARGV[9]  its elapsed time (ms)    ARGV[10] how many kept audit lines, then of each, oldest first: id, text
-- then     how many bases, then their numbers and texts; then of each kept revision: number, id, JSON, mark
-- returns  {'restored' | 'stands', TIME (ms), current revision (JSON), mark}
local number, stable, at = ARGV[2], ARGV[4], 10
local function next_word()
  at = at + 1
  return ARGV[at - 1]
end
local lines, bases, revisions, ids = {}, {}, {}, {}
for i = 1, tonumber(next_word()) do lines[i] = {next_word(), next_word()} end
for i = 1, tonumber(next_word()) do bases[i] = {next_word(), next_word()} end
while at <= #ARGV do
  local revision = {next_word(), next_word(), next_word(), next_word()}
  revisions[#revisions + 1], ids[revision[1]] = revision, revision[2]
end

-- Lines that the store has are known by their text: one that came late has another id there.
local function add_lines()
  local known, count = {}, 2 * #lines
  if count == 0 then return end
  for _, row in ipairs(redis.call('XREVRANGE', names.audit, '+', '-', 'COUNT', count)) do known[row[2][2]] = true end
  for _, line in ipairs(lines) do
    if not known[line[2]] then
      local added = line[1] ~= '' and redis.pcall('XADD', names.audit, line[1], 'a', line[2])
      if not added or type(added) == 'table' then redis.call('XADD', names.audit, '*', 'a', line[2]) end
    end
  end
end

local function add_bases()
  for _, base in ipairs(bases) do redis.call('HSETNX', names.bases, base[1], base[2]) end
end

local current = fleet.current()
if current then
  local goes_on = current == '0' or ids[current] == redis.call('HGET', names.config, 'id')
  if number - current <= 0 or not goes_on then
    if string.find(fleet.revision(number), '"id":"' .. ARGV[3] .. '"', 1, true) then
      add_lines()
      if #bases > 0 and redis.call('EXISTS', names.bases) == 0 then add_bases() end
    end
    return fleet.told('stands', current)
  end
end
for _, revision in ipairs(revisions) do
  redis.call('HSETNX', names.revisions, revision[1], revision[3])
  redis.call('HSETNX', names.marks, revision[1], revision[4])
end
add_bases()
if ARGV[7] ~= '' and redis.call('EXISTS', names.rollout) == 0 then
  redis.call('HSET', names.rollout, 'version', ARGV[7], 'state', ARGV[8], 'elapsed_ms', ARGV[9])
end
add_lines()
local stable_here = redis.call('HGET', names.config, 'stable')
if stable ~= '' and (not stable_here or stable - stable_here > 0) then
  redis.call('HSET', names.config, 'stable', stable)
end
redis.call('HSET', names.config, 'current', number, 'id', ARGV[3], 'live', ARGV[5])
fleet.note(ARGV[6], number)
fleet.ring('restored', number)
return fleet.told('restored', number)
