-- mark: how a revision has turned out. The latest one that is marked stable is the stable one.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  number    ARGV[3] stable: '1' | '0', '' as it is    ARGV[4] outcome (a JSON text), '' as it is
-- ARGV[5]  line of the audit (a JSON object)
-- returns  {'marked', TIME (ms), revision (JSON), mark} | {'unknown', TIME (ms), '', ''}
local number, stable = ARGV[2], ARGV[3]
local revision, mark = fleet.revision(number)
if revision == '' then return fleet.answer('unknown', '', '') end
local was, since_ms, outcome = string.match(mark, '^(%d) (%d+) (.*)$')
if stable == '1' and was ~= '1' then since_ms = text(server.time_ms()) end
if stable == '0' then since_ms = '0' end
local now_marked = (stable ~= '' and stable or was) .. ' ' .. since_ms .. ' ' .. (ARGV[4] ~= '' and ARGV[4] or outcome)
if now_marked == mark then return fleet.told('marked', number) end
redis.call('HSET', names.marks, number, now_marked)

local before, latest = redis.call('HGET', names.config, 'stable') or '', nil
if stable == '1' and (before == '' or number - before > 0) then
  latest = number
elseif stable == '0' and before == number then
  local marks = redis.call('HGETALL', names.marks)
  latest = ''
  for i = 1, #marks, 2 do
    if string.sub(marks[i + 1], 1, 1) == '1' and (latest == '' or marks[i] - latest > 0) then latest = marks[i] end
  end
end
if latest then
  if latest == '' then redis.call('HDEL', names.config, 'stable') else redis.call('HSET', names.config, 'stable', latest) end
  -- It was kept for being the stable one.
  if before ~= '' and fleet.current() - before >= MOST_REVISIONS then fleet.forget(tonumber(before)) end
end
fleet.note(ARGV[5], number)
fleet.ring('marked', number)
return fleet.told('marked', number)
