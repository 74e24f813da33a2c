-- recorded: reads what the recorder has written.
--
-- KEYS     the pool's fixed keys
-- ARGV[1]  '' (no session)    ARGV[2...] pairs: name behind `recorded`, and a field, '' for all of them
-- returns  {'stored', ..., wall clock (ms), {{field, value, ...}, ...}} | {'unopened'}
local refusal = begin('')
if refusal then return refuse(refusal) end
local found = {}
for i = 2, #ARGV, 2 do
  local key, field = names.base .. 'recorded' .. ARGV[i], ARGV[i + 1]
  if field == '' then
    found[#found + 1] = redis.call('HGETALL', key)
  else
    local value = redis.call('HGET', key, field)
    found[#found + 1] = value and {field, value} or {}
  end
end
return books.answer('stored', text(books.wall_ms), found)
