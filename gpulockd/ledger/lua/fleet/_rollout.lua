-- The row of the rollout. Its clock stands still while nobody drives.

function fleet.rollout()
  local row = {}
  local fields = redis.call('HMGET', names.rollout, 'version', 'state', 'driver', 'elapsed_ms', 'last_ms', 'until_ms',
    'term_ms')
  row.version, row.state, row.driver = fields[1] or '0', fields[2] or '', fields[3] or ''
  row.elapsed_ms, row.last_ms = tonumber(fields[4] or 0), tonumber(fields[5] or 0)
  row.until_ms, row.term_ms = tonumber(fields[6] or 0), tonumber(fields[7] or 0)

  -- Lets time pass up to `wall_ms`, the server's TIME; the term of the present driver bounds the step.
  function row.pass(wall_ms, term_ms)
    local step_ms = math.floor((row.driver ~= '' and row.term_ms or term_ms) / 3)
    if row.last_ms > 0 then
      row.elapsed_ms = row.elapsed_ms + math.max(0, math.min(wall_ms - row.last_ms, step_ms))
    end
    row.last_ms = wall_ms
  end

  function row.left_ms()
    return row.driver ~= '' and math.max(0, row.until_ms - row.elapsed_ms) or 0
  end

  function row.write()
    redis.call('HSET', names.rollout, 'version', row.version, 'state', row.state, 'driver', row.driver,
      'elapsed_ms', text(row.elapsed_ms), 'last_ms', text(row.last_ms), 'until_ms', text(row.until_ms),
      'term_ms', text(row.term_ms))
  end

  function row.told(word)
    return fleet.answer(word, row.version, row.state, row.driver, text(row.elapsed_ms), text(row.left_ms()))
  end

  return row
end
