-- alert_write: what becomes of alerts, with what is to be told of it, in one step. An alert that another has changed
-- meanwhile is left as it is. A notice takes the place of an earlier one of its alert that was not sent yet.
--
-- KEYS[1]  alerts    KEYS[2] outbox    KEYS[3] history (stream)
-- ARGV[1]  who writes (a pool), whose channels tell of it
-- ARGV[2...] seven an alert: id, version known ('' for none), the alert ('' removes it), the line of history ('' for
--          none), notice id ('' for none), the notice, channels separated by
--          ',', or '*' for an alert that is removed with all that nobody could tell of it
-- returns  {'written', {id of each alert that was left, ...}}
local by, left = ARGV[1], {}
for i = 2, #ARGV, 7 do
  local id, known, alert, line, notice = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local version = string.match(redis.call('HGET', KEYS[1], id) or '', '^%d+') or ''
  if version ~= known then
    left[#left + 1] = id
  else
    -- The alert itself is last: cut before it, the same comes again and takes the place of what is here.
    if notice ~= '' then
      for channel in string.gmatch(ARGV[i + 6], '[^,]+') do
        redis.call('HSET', KEYS[2], by .. '|' .. channel .. '|' .. id, notice .. '||0|' .. ARGV[i + 5])
      end
    end
    if line ~= '' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', '10000', '*', 'e', line) end
    if alert == '' then
      redis.call('HDEL', KEYS[1], id)
      if ARGV[i + 6] == '*' then
        for _, field in ipairs(redis.call('HKEYS', KEYS[2])) do
          if string.sub(field, -#id - 1) == '|' .. id then redis.call('HDEL', KEYS[2], field) end
        end
      end
    else
      redis.call('HSET', KEYS[1], id, text((tonumber(version) or 0) + 1) .. ' ' .. alert)
    end
  end
end
return {'written', left}
