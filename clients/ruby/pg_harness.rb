# frozen_string_literal: true

# The databases of a living `pg-harness run`: which one is this process's own, and how it becomes pristine again.
#
# One file, Ruby's own library only (Ruby 2.7 or later). Written by `pg-harness init ruby`; it is yours: change what you like.
require 'json'
require 'net/http'
require 'socket'
require 'uri'

module PgHarness
  # What cannot be had, and why.
  class Error < StandardError; end

  COMMAND = 'pg-harness run -n 4 -- bundle exec parallel_rspec -n 4'
  # Seconds to wait for a database while others have all of them; PGHARNESS_LEASE_WAIT says another number.
  WAIT = 300
  # Seconds for any other answer: a reset may be a fresh clone on a busy machine.
  PATIENCE = 120

  module_function

  # This process takes its database, pristine; all variables of the run become that one's (DATABASE_URL, PGHOST … and those of
  # [tool.pg-harness.env]). By its number, where parallel_tests says it (TEST_ENV_NUMBER: '', 2, 3 …), else whichever is free.
  # Before the application is loaded; after a fork once more (Rails: parallelize_setup { PgHarness.use(nil) }).
  def use(worker = ENV['TEST_ENV_NUMBER'])
    variable('PGHARNESS_CONTROL_URL')
    id = number(worker)
    given = id.nil? ? lease : taken(id)
    ENV.update(given['env'])
    ENV['PGHARNESS_LEASE'] = given['id'].to_s
    @own = [Process.pid, given['id']]
    given
  end

  # Back to the last mark, else to what the migrations made; +to+: a mark, or 'template', which forgets all marks.
  def reset(to: nil)
    call(:Post, "/v1/reset/#{own}#{"?to=#{encoded(to)}" if to}")
  end

  # The present state is what reset comes back to; marks stack.
  def mark
    call(:Post, "/v1/mark/#{own}")['mark']
  end

  # Forget a mark, and those above it. The rows stay until the next reset.
  def unmark(mark)
    call(:Delete, "/v1/mark/#{own}/#{encoded(mark)}")
  end

  # Give it back. Who ends, or is killed, gives a leased one back by being gone.
  def release
    call(:Post, "/v1/release/#{own}")
    @own = nil
  end

  def number(worker)
    copies = ENV['PGHARNESS_COPIES'].to_s != ''
    count = copies ? 1 : (ENV['PGHARNESS_WORKERS'] || '1').to_i
    return copies ? ENV['PGHARNESS_LEASE'] : nil if worker.nil?

    asked = worker.to_s == '' ? '1' : worker.to_s
    unless asked.match?(/\A[0-9]{1,9}\z/) && asked.to_i.between?(1, count)
      raise Error, "worker #{worker.inspect} (TEST_ENV_NUMBER) has no database: #{copies ? 'a copy of `run --copies`' : 'this run'} has " \
                   "#{count}, numbered from 1. Give it as many as there are processes (`pg-harness run -n N`), or start fewer (-n)"
    end
    copies ? ENV['PGHARNESS_LEASE'] : asked.to_i
  end

  def taken(id)
    call(:Post, "/v1/reset/#{id}?to=template")
    call(:Get, "/v1/env/#{id}")
  end

  def lease
    wait = ENV['PGHARNESS_LEASE_WAIT'].to_s == '' ? WAIT.to_s : ENV['PGHARNESS_LEASE_WAIT']
    unless wait.match?(/\A[0-9]{1,4}\z/) && wait.to_i <= 3600
      raise Error, "PGHARNESS_LEASE_WAIT is a number of seconds up to 3600, not #{wait.inspect}"
    end

    call(:Post, '/v1/lease', { pid: Process.pid, wait: wait.to_i }, wait.to_i + PATIENCE)
  end

  def own
    pid, id = @own
    return id if pid == Process.pid

    variable('PGHARNESS_CONTROL_URL')
    raise Error, 'this process has no database yet: call PgHarness.use first, after a fork once more'
  end

  def variable(name)
    value = ENV[name].to_s
    return value unless value.empty?

    raise Error, "these tests have no database: they were started outside of pg-harness. Run `#{COMMAND}`"
  end

  def call(verb, path, body = nil, patience = PATIENCE)
    url = variable('PGHARNESS_CONTROL_URL')
    request = Net::HTTP.const_get(verb).new(path, 'Authorization' => "Bearer #{variable('PGHARNESS_CONTROL_TOKEN')}",
                                                  'Content-Type' => 'application/json')
    request.body = body ? JSON.generate(body) : '' unless verb == :Get
    response = begin
      sent(url, request, patience)
    rescue SystemCallError, SocketError, IOError, Timeout::Error, URI::Error, Net::ProtocolError => e
      raise Error, "nobody answers at #{url} (PGHARNESS_CONTROL_URL): #{e.message}. The run #{ENV['PGHARNESS_RUN']} is over or was killed; " \
                   "its databases are gone, and no others are taken in their stead. Run `#{COMMAND}`"
    end
    answer = parsed(response.body)
    return answer if response.code.to_i < 300

    # It names who has the databases, where none is free.
    said = answer['detail'] || answer['title'] || response.body.to_s[0, 300]
    raise Error, "pg-harness: #{said} (#{verb.upcase} #{path}: #{response.code})"
  end

  def sent(url, request, patience)
    return over_socket(url.delete_prefix('unix://'), request) if url.start_with?('unix://')

    address = URI.parse(url)
    raise URI::InvalidURIError, 'this is no address such as http://127.0.0.1:41234' unless address.is_a?(URI::HTTP)

    # No proxy: what is asked is on this machine.
    http = Net::HTTP.new(address.hostname, address.port, nil)
    http.read_timeout = patience
    # A lease that was asked for twice would be two.
    http.max_retries = 0
    http.start { |connection| connection.request(request) }
  end

  def over_socket(path, request)
    socket = Net::BufferedIO.new(UNIXSocket.new(URI.decode_www_form_component(path.gsub('+', '%2B'))), read_timeout: 4000)
    request['Host'] = 'localhost'
    request.exec(socket, '1.1', request.path)
    response = Net::HTTPResponse.read_new(socket)
    response.reading_body(socket, request.response_body_permitted?) { response.body }
    response
  ensure
    socket&.close
  end

  def encoded(text)
    URI.encode_www_form_component(text).gsub('+', '%20')
  end

  def parsed(text)
    read = JSON.parse(text.to_s)
    read.is_a?(Hash) ? read : {}
  rescue JSON::ParserError
    {}
  end

  private_class_method :number, :taken, :lease, :own, :variable, :call, :sent, :over_socket, :encoded, :parsed
end
