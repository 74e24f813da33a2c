-- audits: a page of the audit, latest first, down to the line `ARGV[4]` if it is there.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  id of a line before which the page begins, '' for the latest    ARGV[3] how many (1 ... 1000)
-- ARGV[4]  id of the line with which it ends, '' for none
-- returns  {'audits', TIME (ms), {id, line (JSON), ...}}
local count, found = math.min(1000, math.max(1, tonumber(ARGV[3]))), {}
local from = ARGV[2] ~= '' and '(' .. ARGV[2] or '+'
for _, row in ipairs(redis.call('XREVRANGE', names.audit, from, ARGV[4] ~= '' and ARGV[4] or '-', 'COUNT', count)) do
  found[#found + 1], found[#found + 2] = row[1], row[2][2]
end
return fleet.answer('audits', found)
