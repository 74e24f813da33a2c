-- The gpus of a pool and what sits on them. What an offered gpu is stands in the terms, as it was offered; what sits on
-- all of them is one text in the books, in which those that are ready and empty are left out. "Any gpu" means offered
-- gpus, in the order of their index. A key without hardware is a gpu of which only the key is known; what sits on it is
-- one field of the hash `gpus`, absent while nothing does.

gpus = room(function(gpus)
  local on                    -- offered gpu -> record; kept for the next call if that reads the same text
  local changed               -- does the text no longer say what the records do?
  local slots = {}            -- key without hardware -> record, read once a script
  local looked                -- has this script looked whether somebody has deleted the hash `gpus`?
  local parsed, wants_known = {}, 0   -- text -> wants, over many calls
  local lists, lists_known = {}, 0    -- keys joined -> keys, over many calls

  -- The offered gpus as the terms have them: by key, and their keys in the order of their index.
  function gpus.cards_of(json)
    local cards, keys = {}, {}
    for i, card in ipairs(cjson.decode(json)) do
      card.offered = true
      card.told = table.concat({card.key, text(card.index), card.uuid, text(card.memory_mib), card.name}, ' ')
      cards[card.key], keys[i] = {__index = card}, card.key
    end
    table.sort(keys, function(a, b)
      local one, other = cards[a].__index.index, cards[b].__index.index
      return one < other or (one == other and a < b)
    end)
    return cards, keys
  end

  local function record(key, packed)
    local g = setmetatable({key = key, state = 'ready', exclusive = '', shared = 0, used_mib = 0}, meta.cards[key])
    if not packed then return g end
    local state, exclusive, shared, used_mib = string.match(packed, '(%S+) (%S+) (%S+) (%S+)')
    g.state, g.shared, g.used_mib, g.packed = state, shared + 0, used_mib + 0, packed
    if exclusive ~= '-' then g.exclusive = exclusive end
    return g
  end

  -- Reads what sits on the offered gpus. The records are taken from the call before only if that came to its end and
  -- the books say the same still.
  local function read()
    if names.on_text == meta.gpus and names.on_cards == meta.cards then
      on = names.on
    else
      local there = {}
      for key, packed in string.gmatch(meta.gpus, '(%S+) ([^;]+);') do there[key] = packed end
      on = {}
      for _, key in ipairs(meta.offered_keys) do on[key] = record(key, there[key]) end
    end
    names.on_text = nil
    return on
  end

  function gpus.get(key)
    local g = (on or read())[key] or slots[key]
    if g then return g end
    local packed = redis.call('HGET', names.gpus, key)
    if not packed and not looked then
      looked = true
      if redis.call('ZCARD', names.due) > 0 and redis.call('EXISTS', names.gpus) == 0 then gpus.count_anew() end
    end
    slots[key] = slots[key] or record(key, packed)
    return slots[key]
  end

  -- Nothing sits on a slot, or somebody has deleted the key that says what does: the leases say it too.
  function gpus.count_anew()
    looked = true
    for _, t in ipairs(tickets.granted()) do
      local on_slots = {}
      for _, key in ipairs(gpus.split(t.gpus)) do
        if not meta.cards[key] then on_slots[#on_slots + 1] = key end
      end
      gpus.occupy(gpus.wants(t.wants), on_slots, t.id)
    end
  end

  function gpus.offered()
    return meta.offered_keys
  end

  function gpus.forget()
    on, changed, looked = nil, false, false
    if next(slots) then slots = {} end
  end

  -- The text that says what sits on the offered gpus, or nil if it has not changed.
  function gpus.text()
    if not changed then return nil end
    local said, keys = '', meta.offered_keys
    for i = 1, #keys do
      local packed = on[keys[i]].packed
      if packed then said = said .. keys[i] .. ' ' .. packed .. ';' end
    end
    meta.gpus, changed = said, false
    return meta.gpus
  end

  -- The call has come to its end.
  function gpus.keep()
    if on then names.on, names.on_text, names.on_cards = on, meta.gpus, meta.cards end
  end

  function gpus.write(g)
    if g.shared == 0 and g.exclusive == '' and g.state == 'ready' then
      g.packed = nil
    else
      g.packed = g.state .. ' ' .. (g.exclusive ~= '' and g.exclusive or '-') .. ' ' .. text(g.shared) .. ' ' .. text(g.used_mib)
    end
    if g.offered then
      changed = true
    elseif g.packed then
      redis.call('HSET', names.gpus, g.key, g.packed)
    else
      redis.call('HDEL', names.gpus, g.key)
    end
  end

  -- From now on these gpus are offered and no others; what sits on them goes with them.
  function gpus.offer(json)
    local cards, keys = gpus.cards_of(json)
    local before, after = on or read(), {}
    for _, key in ipairs(keys) do
      after[key] = gpus.get(key)
      if not before[key] then redis.call('HDEL', names.gpus, key) end
      setmetatable(after[key], cards[key])
    end
    for key, g in pairs(before) do
      if not cards[key] then
        slots[key] = setmetatable(g, nil)
        gpus.write(g)
      end
    end
    books.note_term('cards_json', json)
    meta.cards, meta.offered_keys, on, changed = cards, keys, after, true
  end

  -- Keys that were joined by commas. The list is for all who ask, so nobody changes it.
  function gpus.split(joined)
    local list = lists[joined or '']
    if list then return list end
    list = {}
    for key in string.gmatch(joined or '', '[^,]+') do list[#list + 1] = key end
    if lists_known > 1024 then lists, lists_known = {}, 0 end
    lists[joined or ''], lists_known = list, lists_known + 1
    return list
  end

  -- The wants that a text names: 'exclusive:2:0:any', 'shared:1:8192:any', 'exclusive:1:0:gpu_lock:0'.
  function gpus.wants(words)
    local w = parsed[words]
    if w then return w end
    local mode, count, mib, place = string.match(words, '^(%a+):(%d+):(%d+):(.+)$')
    w = {text = words, exclusive = mode == 'exclusive', count = tonumber(count), mib = tonumber(mib)}
    if place ~= 'any' then w.keys = gpus.split(place) end
    if wants_known > 1024 then parsed, wants_known = {}, 0 end
    parsed[words], wants_known = w, wants_known + 1
    return w
  end

  function gpus.candidates(w)
    return w.keys or gpus.offered()
  end

  -- Could `w` ever be on this gpu?
  function gpus.suits(w, g)
    return w.mib == 0 or (g.memory_mib ~= nil and g.memory_mib >= w.mib)
  end

  -- Is there room on this gpu for `w` now?
  function gpus.room(w, g)
    if g.state ~= 'ready' or g.exclusive ~= '' or not gpus.suits(w, g) then return false end
    if w.exclusive then return g.shared == 0 end
    return g.used_mib + w.mib <= (g.memory_mib or 0)
  end

  -- The gpus on which `w` could begin now, or nil: whole cards by smallest fitting memory, budgets packed.
  -- `allowed(key)` may forbid some.
  function gpus.pick(w, allowed)
    local list = {}
    local candidates = gpus.candidates(w)
    for i = 1, #candidates do
      local key = candidates[i]
      local g = gpus.get(key)
      if gpus.room(w, g) and (not allowed or allowed(key)) then list[#list + 1] = g end
    end
    if #list < w.count then return nil end
    if #list > 1 and (w.keys or w.mib > 0) then   -- offered gpus are in the order of their index
      table.sort(list, function(a, b)
        if not w.exclusive and a.used_mib ~= b.used_mib then return a.used_mib > b.used_mib end
        if w.exclusive and w.mib > 0 and a.memory_mib ~= b.memory_mib then return a.memory_mib < b.memory_mib end
        if (a.index or 0) ~= (b.index or 0) then return (a.index or 0) < (b.index or 0) end
        return a.key < b.key
      end)
    end
    local keys = {}
    for i = 1, w.count do keys[i] = list[i].key end
    return keys
  end

  function gpus.occupy(w, keys, id)
    for _, key in ipairs(keys) do
      local g = gpus.get(key)
      if w.exclusive then
        g.exclusive = id
      else
        g.shared = g.shared + 1
        g.used_mib = g.used_mib + w.mib
      end
      gpus.write(g)
    end
  end

  -- Takes `id` off its gpus; those that may go straight on are freed. `lost`: was its lease lost, or given back; nil if
  -- it never began there, so that nothing of it is to settle.
  function gpus.vacate(w, keys, id, lost)
    for _, key in ipairs(keys) do
      local g = gpus.get(key)
      local there = not w.exclusive or g.exclusive == id
      if w.exclusive and there then
        g.exclusive = ''
      elseif there then
        g.shared = math.max(0, g.shared - 1)
        g.used_mib = math.max(0, g.used_mib - w.mib)
      end
      local settles = there and meta.guarded == '1' and g.state == 'ready' and g.offered
        and ((lost ~= nil and meta.settle_policy == 'always') or (lost and meta.settle_policy == 'after_loss'))
      if settles then
        g.state = 'settling'
        due.at(books.now + meta.settle_ms, 'settle:' .. g.key)
        books.emit('gpu_settling', books.facts({gpus = {g.key}, lease = id}))
      end
      gpus.write(g)
      if there and not settles then books.freed[key] = true end
    end
  end

  -- The gpus as an answer carries them: key, index, uuid, memory in MiB and name in one text each, or a slot's key alone.
  function gpus.describe(keys)
    local list = {}
    for i, key in ipairs(keys) do
      local card = meta.cards[key]
      list[i] = card and card.__index.told or key
    end
    return list
  end
end)
