-- Epochs. A server that is not the one in the books may have lost the last writes, so somebody unknown may still
-- believe a lease: the pool is frozen until nobody can. It opens at once where nothing was ever believed.

epochs = room(function(epochs)
  function epochs.adopt(terms)
    for _, name in ipairs({'ttl_ms', 'step_ms', 'keepalive_ms', 'claim_window_ms', 'priority_step_ms', 'hold_back_ms',
      'settle_ms', 'settle_policy'}) do
      books.note_term(name, terms[name])
    end
  end

  function epochs.freeze(length_ms, why)
    books.note_term('frozen_until', text(books.now + length_ms))
    books.note('frozen_why', why)
    books.note('opened', 'frozen')
  end

  function epochs.unfreeze(how)
    books.note_term('frozen_until', '0')
    books.note('frozen_why', '')
    if how then books.note('opened', how) end
  end

  -- May anybody unknown still believe a lease of this pool? No, if server and pool were never used before.
  local function never_used(known_pool)
    if known_pool ~= '0' then return false end
    local replication = server.info('replication')
    if not string.find(replication, 'role:master', 1, true) then return false end
    if not string.find(replication, 'second_repl_offset:-1', 1, true) then return false end
    local commands = server.info('commandstats')
    for _, command in ipairs({'flushall', 'flushdb', 'swapdb'}) do
      if string.find(commands, 'cmdstat_' .. command .. ':', 1, true) then return false end
    end
    return true
  end

  -- Somebody may have deleted the books by hand, and the leases still stand: they sit on their gpus as before. Where
  -- these are no longer offered, they are slots until they are.
  local function leases_survived()
    local survivors = tickets.granted()
    for _, t in ipairs(survivors) do books.raise_token(t.token) end
    redis.call('DEL', names.gpus)
    if survivors[1] then gpus.count_anew() end
    local last = redis.call('XREVRANGE', names.events, '+', '-', 'COUNT', 1)[1]
    if last then meta.seq = math.max(meta.seq, tonumber(string.match(last[1], '%d+'))) end
    return survivors[1]
  end

  function epochs.open(run_id, terms, known_pool)
    local info = server.info('server')
    local missing = not meta.run_id
    if missing then
      epochs.adopt(terms)
      for _, name in ipairs({'offered', 'guarded', 'frozen_until', 'version'}) do meta[name] = '0' end
      books.note('was_guarded', 'unknown')
      gpus.offer('[]')
      known_pool = leases_survived() and '1' or known_pool
    end
    books.raise_token(books.wall_ms)
    meta.seq = math.max(meta.seq, books.wall_ms)
    books.note_term('run_id', run_id)
    books.note_term('epoch', string.sub(run_id, 1, 8) .. '-' .. text(meta.token))
    meta.epoch_token = meta.token
    books.note_term('cluster', string.find(info, '_mode:cluster', 1, true) and '1' or '0')
    if not missing then
      -- Who is on a gpu was let in before the freeze, so that is when a guard must have stood there.
      if not books.frozen() then books.note('was_guarded', meta.guarded) end
      -- A freeze that was not over when the server changed may have been for lost data: nobody can vouch for that.
      return epochs.freeze(meta.ttl_ms, books.frozen() and 'data_lost' or 'store_changed')
    end
    if not never_used(known_pool) then return epochs.freeze(meta.ttl_ms, 'data_lost') end
    local young_ms = meta.ttl_ms - 1000 * tonumber(string.match(info, 'uptime_in_seconds:(%d+)'))
    epochs.unfreeze()
    if young_ms > 0 then epochs.freeze(young_ms, 'new_store') end
    books.note('opened', 'never_used')
  end

  -- Nobody has offered the pool again by now: what waits for any gpu means gpu_lock:0, all at once, in their order.
  local function mean_slot_0()
    for _, id in ipairs(redis.call('ZRANGE', names.queue, 0, -1)) do
      local t = tickets.get(id)
      local words = t and limits.meant(t.wants)
      if t and words ~= t.wants then
        queue.leave(id, gpus.wants(t.wants))
        t.wants = words
        tickets.write(t)
        if t.state == 'waiting' then queue.enter(id, gpus.wants(words), t.score)
        else redis.call('ZADD', names.queue, t.score, id) end
      end
    end
  end

  -- Somebody knew a guard here before the data was lost: only its word, or a long silence, ends the freeze.
  function epochs.wait_for_guard(length_ms)
    if meta.frozen_why == 'guard_away' then return end
    local until_ms = math.max(tonumber(meta.frozen_until), books.now + length_ms)
    epochs.freeze(until_ms - books.now, 'guard_away')
  end

  -- The guard has said all leases that it has let in. At once where the books survived; else after a step, so that
  -- those who wait are back with their stamps. Where the surviving books know of no guard when the freeze began, some
  -- may be on a gpu whom it has never seen: they believe no longer than a ttl.
  function epochs.known_by_guard()
    local unseen = meta.was_guarded == '0'
    if not unseen and meta.frozen_why == 'store_changed' then return epochs.unfreeze('known_by_guard') end
    local until_ms = math.min(tonumber(meta.frozen_until), books.now + (unseen and meta.ttl_ms or meta.step_ms))
    books.note_term('frozen_until', text(until_ms))
    if not unseen then books.note('opened', 'known_by_guard') end
  end

  function epochs.thaw()
    epochs.unfreeze()
    if meta.offered ~= '1' then mean_slot_0() end
    placing.free_all()
  end
end)
