-- The gpus of a pool and what sits on them. One hash a gpu, `gpu:<key>`; a key without hardware has one only
-- while it is held. "Any gpu" means offered gpus, in the order of their index.

gpus = room(function(gpus)
  local known = {}            -- key -> record, read once a script
  local offered_keys          -- keys in order of index, read once a script
  local parsed, wants_known = {}, 0   -- text -> wants, over many calls

  function gpus.get(key)
    local found = known[key]
    if found then return found end
    local fields, v = redis.call('HGETALL', names.base .. 'gpu:' .. key), {}
    for i = 1, #fields, 2 do v[fields[i]] = fields[i + 1] end
    found = {key = key, index = tonumber(v.index), memory_mib = tonumber(v.memory_mib), state = v.state or 'ready',
      exclusive = v.exclusive or '', shared = tonumber(v.shared) or 0, used_mib = tonumber(v.used_mib) or 0,
      uuid = v.uuid or '', name = v.name or '', offered = v.offered == '1'}
    known[key] = found
    return found
  end

  function gpus.offered()
    if not offered_keys then offered_keys = redis.call('ZRANGE', names.offered, 0, -1) end
    return offered_keys
  end

  function gpus.forget()
    known, offered_keys = {}, nil
  end

  function gpus.split(joined)
    local list = {}
    for key in string.gmatch(joined or '', '[^,]+') do list[#list + 1] = key end
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
    for _, key in ipairs(gpus.candidates(w)) do
      local g = gpus.get(key)
      if gpus.room(w, g) and (not allowed or allowed(key)) then list[#list + 1] = g end
    end
    if #list < w.count then return nil end
    if #list > 1 then
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

  function gpus.write(g)
    local key = names.base .. 'gpu:' .. g.key
    if not g.offered and g.state == 'ready' and g.exclusive == '' and g.shared == 0 then
      redis.call('DEL', key)
    else
      redis.call('HSET', key, 'state', g.state, 'exclusive', g.exclusive, 'shared', g.shared, 'used_mib', g.used_mib)
    end
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

  -- Takes `id` off its gpus; those that may go straight on are freed.
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
        and (meta.settle_policy == 'always' or (lost and meta.settle_policy == 'after_loss'))
      if settles then
        g.state = 'settling'
        redis.call('ZADD', names.due, books.now + meta.settle_ms, 'settle:' .. g.key)
        books.emit('gpu_settling', books.facts({gpus = {g.key}, lease = id}))
      end
      gpus.write(g)
      if there and not settles then books.freed[key] = true end
    end
  end

  -- The gpus as an answer carries them: key, index, uuid, name, memory in MiB.
  function gpus.describe(keys)
    local list = {}
    for i, key in ipairs(keys) do
      local g = gpus.get(key)
      list[i] = {key, g.index and text(g.index) or '', g.uuid, g.name, g.memory_mib and text(g.memory_mib) or ''}
    end
    return list
  end
end)
