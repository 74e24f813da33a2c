-- Placement and hand-off: whatever makes room on a gpu ends in `placing.place`, in the same script.

placing = room(function(placing)
  local LIMIT = 1024   -- tickets tried per script; the rest is due at once

  -- The gpus for a ticket now, after every head that has waited too long has chosen among them; or nil.
  -- `own`: the wants whose head it is, nil if it is not in the queue. `alone`: gpus that nobody of other wants waits for.
  function placing.find(w, score, id, own, alone)
    local function allowed(key) return holding_back.allows(key, score, id) end
    while true do
      local keys = gpus.pick(w, allowed)
      if not keys then return nil end
      local held = false
      for _, key in ipairs(keys) do
        if not (alone and alone[key]) then held = holding_back.before(key, score, id, own) or held end
      end
      if not held then return keys end
    end
  end

  -- Hands `keys` to a waiting ticket and rings its process. Nobody listens: the ticket is away.
  -- The token is written first, then the gpus, then the lease: a cut in between leaves a gpu taken by nobody.
  local function hand_off(id, w, keys, next_id, next_score)
    local t, token = tickets.get(id), books.next_token()
    local doorbell = 'claim ' .. id .. ' ' .. text(token) .. ' ' .. table.concat(keys, ',')
    if books.ring(t.session, doorbell) == 0 then return queue.send_away(t, w) end
    local following, following_score = queue.leave_head(id, w, next_id, next_score)
    gpus.occupy(w, keys, id)
    due.not_before(books.now + meta.claim_window_ms)
    books.take(0)
    t.state, t.token, t.gpus, t.granted_ms = 'claim', token, table.concat(keys, ','), books.now
    tickets.write(t)
    due.at(books.now + meta.claim_window_ms, 'lease:' .. id)
    return following, following_score
  end

  local function gather(keys)
    local line, seen, any = {}, {}, false
    local function add(source)
      local rows = redis.call('ZRANGE', source, 0, -1, 'WITHSCORES')
      for i = 1, #rows, 2 do
        if not seen[rows[i]] then
          seen[rows[i]] = true
          line[#line + 1] = {words = rows[i], score = tonumber(rows[i + 1])}
        end
      end
    end
    for key in pairs(keys) do
      add(names.base .. 'heads:' .. key)
      any = any or gpus.get(key).offered
    end
    if any then add(names.base .. 'heads:any') end
    return line
  end

  -- Heads of the same score go by the id of their ticket, as in the queue.
  local function earliest(line)
    local best
    for i, row in ipairs(line) do
      local other = line[best]
      local same = other and row.score == other.score
      local first = same and (queue.head(row.words) or '') < (queue.head(other.words) or '')
      if not other or row.score < other.score or first then best = i end
    end
    return best
  end

  local function still_room(keys)
    for key in pairs(keys) do
      if gpus.get(key).exclusive == '' then return true end
    end
    return false
  end

  -- Grants what can begin on `keys`, lowest score first. Returns how many tickets were tried.
  local function fill(keys, tries)
    local line = gather(keys)
    local alone = #line == 1 and keys or {}
    while #line > 0 and still_room(keys) and tries < LIMIT do
      local i = earliest(line)
      local w = gpus.wants(line[i].words)
      local id, score, next_id, next_score = queue.head(w.text)
      local found = id and placing.find(w, score, id, w.text, alone)
      local _, following
      if found then
        _, following = hand_off(id, w, found, next_id, next_score)
        tries = tries + 1
      end
      if following then line[i].score = following else table.remove(line, i) end
    end
    return tries
  end

  -- Grants whatever can begin on the freed gpus. While the pool is frozen nothing begins.
  function placing.place()
    local tries = 0
    while next(books.freed) and not books.frozen() do
      local keys = books.freed
      books.freed = {}
      if redis.call('ZCARD', names.queue) == 0 then return end
      if tries < LIMIT then tries = fill(keys, tries) end
      if tries >= LIMIT then
        for key in pairs(keys) do due.at(books.now, 'place:' .. key) end
      end
    end
  end

  function placing.free_all()
    for _, key in ipairs(gpus.offered()) do books.freed[key] = true end
    for _, id in ipairs(redis.call('ZRANGE', names.queue, 0, -1)) do
      local t = tickets.get(id)
      for _, key in ipairs(t and gpus.wants(t.wants).keys or {}) do books.freed[key] = true end
    end
  end
end)
