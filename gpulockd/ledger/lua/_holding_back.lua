-- Hold-back: how overtaking ends. A head that has waited for `hold_back_ms` chooses its gpus as soon as a later ticket
-- would begin on one that it could use; nobody with a later score may begin on a chosen gpu, shared budgets included.
-- Choices stand in `held_back`, apart from the heads: they stay when a ticket of higher priority becomes head.

holding_back = room(function(holding_back)
  local choices           -- gpu key -> list of {id, score}, read once and after each change

  function holding_back.forget()
    choices = nil
  end

  local function read()
    if choices then return choices end
    choices = {}
    local rows = redis.call('ZRANGE', names.held_back, 0, -1, 'WITHSCORES')
    for i = 1, #rows, 2 do
      local t = tickets.get(rows[i])
      for _, key in ipairs(gpus.split(t and t.chosen)) do
        choices[key] = choices[key] or {}
        table.insert(choices[key], {id = rows[i], score = tonumber(rows[i + 1])})
      end
    end
    return choices
  end

  function holding_back.drop(id)
    if next(read()) == nil or redis.call('ZREM', names.held_back, id) == 0 then return end
    local t = tickets.get(id)
    if t then
      for _, key in ipairs(gpus.split(t.chosen)) do books.freed[key] = true end
      tickets.mark(t, 'chosen', nil)
    end
    choices = nil
  end

  -- A gpu that was quarantined, drained, lost or taken from the offer is no choice: who chose it chooses anew.
  function holding_back.drop_choices_of(key)
    for _, choice in ipairs(read()[key] or {}) do holding_back.drop(choice.id) end
  end

  -- May a ticket with this score begin on `key`, by what others have chosen?
  function holding_back.allows(key, score, id)
    for _, choice in ipairs(read()[key] or {}) do
      if choice.id ~= id and queue.before(choice.score, choice.id, score, id) then return false end
    end
    return true
  end

  -- Chooses the gpus with the fewest earlier choices and holders, then the lowest index.
  local function choose(id, w, score)
    local list = {}
    for _, key in ipairs(gpus.candidates(w)) do
      local g = gpus.get(key)
      if gpus.suits(w, g) and (g.state == 'ready' or g.state == 'settling') then
        local earlier = 0
        for _, choice in ipairs(read()[key] or {}) do
          if queue.before(choice.score, choice.id, score, id) then earlier = earlier + 1 end
        end
        local holders = g.shared + (g.exclusive ~= '' and 1 or 0)
        list[#list + 1] = {key = key, rank = earlier * 1000 + holders, index = g.index or 0}
      end
    end
    if #list < w.count then return false end
    table.sort(list, function(a, b)
      if a.rank ~= b.rank then return a.rank < b.rank end
      if a.index ~= b.index then return a.index < b.index end
      return a.key < b.key
    end)
    local keys = {}
    for i = 1, w.count do keys[i] = list[i].key end
    redis.call('ZADD', names.held_back, score, id)
    tickets.mark(tickets.get(id), 'chosen', table.concat(keys, ','))
    choices = nil
    return true
  end

  local function may_choose(id, words, key)
    local t = tickets.get(id)
    return not t.chosen and books.now - t.stamp >= meta.hold_back_ms and gpus.suits(gpus.wants(words), gpus.get(key))
  end

  -- Lets the heads that have waited long enough choose, before a later ticket begins on `key`. Returns whether any did.
  function holding_back.before(key, score, id, own)
    local any = false
    local sources = {names.base .. 'heads:' .. key}
    if gpus.get(key).offered then sources[2] = names.base .. 'heads:any' end
    for _, source in ipairs(sources) do
      for _, words in ipairs(redis.call('ZRANGEBYSCORE', source, '-inf', score)) do
        local other, other_score
        if words ~= own then other, other_score = queue.head(words) end
        local earlier = other and other ~= id and queue.before(other_score, other, score, id)
        if earlier and may_choose(other, words, key) then any = choose(other, gpus.wants(words), other_score) or any end
      end
    end
    return any
  end
end)
