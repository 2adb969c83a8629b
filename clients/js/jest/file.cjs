const { setUp } = require('../edges/jest.cjs');

setUp('file');
