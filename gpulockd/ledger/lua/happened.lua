-- happened: reads the pool's events backwards, the latest first: for who must know the last minutes to the millisecond.
--
-- KEYS[1]  the pool's `meta`
-- ARGV[1]  ''    ARGV[2] seq before which, '' from the latest on    ARGV[3] events wanted (1 ... 1000)
-- returns  {'happened', ..., wall clock (ms), events that the stream has dropped, {event, ...}} | {'unopened'}
local refusal = begin('')
if refusal then return refuse(refusal) end
local dropped, events = 0, {}
if redis.call('EXISTS', names.events) == 1 then
  local stream = redis.call('XINFO', 'STREAM', names.events)
  for i = 1, #stream, 2 do
    if stream[i] == 'entries-added' then dropped = dropped + stream[i + 1] end
    if stream[i] == 'length' then dropped = dropped - stream[i + 1] end
  end
  local wanted = math.min(1000, math.max(1, tonumber(ARGV[3])))
  local before = ARGV[2] == '' and '+' or '(' .. ARGV[2] .. '-0'
  for i, row in ipairs(redis.call('XREVRANGE', names.events, before, '-', 'COUNT', wanted)) do events[i] = row[2][2] end
end
return books.answer('happened', text(books.wall_ms), text(dropped), events)
