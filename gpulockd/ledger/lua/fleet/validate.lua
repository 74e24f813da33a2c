-- validate: the verdict on a document; a later one replaces it. The last 1,000 are kept.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  digest    ARGV[3] verdict (JSON)    ARGV[4] line of the audit (a JSON object)
-- returns  {'noted', TIME (ms)}
redis.call('HSET', names.validated, ARGV[2], text(server.time_ms()) .. ' ' .. ARGV[3])
while redis.call('HLEN', names.validated) > 1000 do
  local rows, oldest, oldest_ms = redis.call('HGETALL', names.validated), nil, nil
  for i = 1, #rows, 2 do
    local at_ms = tonumber(string.match(rows[i + 1], '^%d+'))
    if rows[i] ~= ARGV[2] and (not oldest or at_ms < oldest_ms) then oldest, oldest_ms = rows[i], at_ms end
  end
  redis.call('HDEL', names.validated, oldest)
end
fleet.note(ARGV[4])
return fleet.answer('noted')
