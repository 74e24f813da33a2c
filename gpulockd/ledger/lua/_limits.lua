-- What a pool can never grant, told at once instead of after the wait.

limits = room(function(limits)
  local MOST_WANTS = 256   -- distinct wants on one gpu

  local function of_any(w)
    local fitting, largest = 0, 0
    for _, key in ipairs(gpus.candidates(w)) do
      if gpus.suits(w, gpus.get(key)) then fitting = fitting + 1 end
      largest = math.max(largest, gpus.get(key).memory_mib or 0)
    end
    if w.count > #gpus.offered() then return 'too_many_gpus', text(#gpus.offered()) end
    if w.count > fitting then return 'too_much_memory', text(largest) end
  end

  local function of_key(w, g)
    if meta.offered == '1' and not g.offered and string.find(g.key, '^gpu_lock:%d+$') then return 'no_such_gpu', g.key end
    if w.mib > 0 and not g.memory_mib then return 'no_memory', g.key end
    if not gpus.suits(w, g) then return 'too_much_memory', text(g.memory_mib) end
  end

  -- In a pool that nobody has offered, "any one" means gpu_lock:0. While it is frozen an offer may only be lost.
  function limits.meant(words)
    local any_one = meta.offered ~= '1' and words == 'exclusive:1:0:any' and not books.frozen()
    return any_one and 'exclusive:1:0:gpu_lock:0' or words
  end

  -- Why these wants can never be granted here: a kind and its detail, or nil.
  function limits.refusal(w, nobody_waits)
    for _, key in ipairs(nobody_waits and {} or queue.heads_of(w)) do
      if redis.call('ZCARD', key) >= MOST_WANTS and not redis.call('ZSCORE', key, w.text) then
        return 'too_many_wants', text(MOST_WANTS)
      end
    end
    if not w.keys then
      if meta.offered ~= '1' then return 'not_offered', '' end
      return of_any(w)
    end
    for _, key in ipairs(gpus.candidates(w)) do
      local kind, detail = of_key(w, gpus.get(key))
      if kind then return kind, detail end
    end
  end
end)
