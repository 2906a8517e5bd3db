# SPDX-License-Identifier: Apache-2.0
"""A mirror of AMD's key server for a fleet of hosts.

It asks AMD for each certificate once, at AMD's pace, keeps what verifies in a database, and gives
it to hosts, guests and verifiers by AMD's own URLs. It needs the packages of the extra ``mirror``.

``tables``, ``migrations``, ``database``    the database
``stored``, ``admission``    certificates that have verified, and how they do
``wanted``, ``fetcher``    the queue and pace of all instances, and who works on it
``target``, ``body_cache``, ``waiting``, ``service``, ``api``, ``serving``    HTTP
``announcement``, ``fleet_view``, ``page``, ``charts``, ``markup``    hosts and the pages
"""
