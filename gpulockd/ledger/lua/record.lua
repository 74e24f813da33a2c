-- record: the recorder writes what it has counted, and gets the events that come next in the pool's stream. What it
-- writes holds only if nobody has recorded since: with two recorders the later one is told, and changes nothing.
--
-- KEYS     the pool's fixed keys
-- ARGV[1]  '' (no session)    ARGV[2] seq through which it knows all to be recorded, '' for nothing
-- ARGV[3]  seq through which this batch records, '' to write nothing    ARGV[4] events wanted (1 ... 1000)
-- ARGV[5]  the book    ARGV[6...] the rest of the batch: name behind `recorded`, field, value ('' removes it), end of
--          the key (wall clock, ms, '' for none)
-- returns  {'recorded', ..., wall clock (ms), events ever added, events in the stream, first seq in it, {seq, event, ...}}
--          | {'superseded', ..., seq recorded by another, ''} | {'unopened'}
local known, through, wanted = ARGV[2], ARGV[3], math.min(1000, math.max(1, tonumber(ARGV[4])))
local refusal = begin('')
if refusal then return refuse(refusal) end
local base = names.base .. 'recorded'
local position = redis.call('HGET', base, 'position') or ''
if position ~= known then return books.answer('superseded', position) end

-- What the stream has is read before anything is written: a call that fails changes nothing.
local added, length, first, events = '0', '0', '', {}
if redis.call('EXISTS', names.events) == 1 then
  local stream = redis.call('XINFO', 'STREAM', names.events)
  for i = 1, #stream, 2 do
    if stream[i] == 'entries-added' then added = text(stream[i + 1]) end
    if stream[i] == 'length' then length = text(stream[i + 1]) end
    if stream[i] == 'recorded-first-entry-id' then first = string.match(stream[i + 1], '%d+') end
  end
  local after = through ~= '' and through or position
  local rows = redis.call('XRANGE', names.events, after == '' and '-' or '(' .. after .. '-1', '+', 'COUNT', wanted)
  for i, row in ipairs(rows) do
    events[2 * i - 1], events[2 * i] = string.match(row[1], '%d+'), row[2][2]
  end
end

if through ~= '' then
  for i = 6, #ARGV, 4 do
    local key, field, value, ends_ms = base .. ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
    if value == '' then redis.call('HDEL', key, field) else redis.call('HSET', key, field, value) end
    if ends_ms ~= '' then redis.call('PEXPIREAT', key, ends_ms, 'NX') end
  end
  -- Last: every value says through which event it has counted, so a batch that was cut short is completed by the next.
  redis.call('HSET', base, 'position', through, 'book', ARGV[5])
end
return books.answer('recorded', text(books.wall_ms), added, length, first, events)
